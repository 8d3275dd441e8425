"""LoRA adapters: found, checked against the model before its weights are read, then merged into them.

Merged rather than attached: W + B A * scale is computed once in the model's own precision, and every engine then
runs plain linear layers. In float32 the merged model equals the attached one up to rounding.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tasks.errors import BadInput
from tasks.models import hub, remote
from tasks.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tasks.models.sources import Source

_LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def local_folder(source: Source) -> Path:
    """Folder with the adapter's configuration and weights, downloaded if need be. BadInput if it is no LoRA."""
    match source.kind:
        case "hub":
            folder = hub.fetch(source, ADAPTER_CONFIG).parent
            _fetch_weights(source)
        case "url":
            folder = remote.download(source)
        case _:
            folder = Path(source.location)
    missing = [ADAPTER_CONFIG] if not (folder / ADAPTER_CONFIG).is_file() else []
    if not any((folder / name).is_file() for name in ADAPTER_WEIGHTS):
        missing.append(ADAPTER_WEIGHTS[0])
    if missing:
        raise source.bad(f"has no {' and no '.join(missing)}", "give a folder that peft's save_pretrained wrote")
    kind = json.loads((folder / ADAPTER_CONFIG).read_bytes()).get("peft_type")
    if kind != "LORA":
        raise source.bad(f"is a {kind} adapter", "only LoRA adapters can be merged")
    return folder


def check_fits(source: Source, folder: Path, config: PretrainedConfig) -> None:
    """Compare the adapter's shapes with the model's, neither of whose weights is needed for it."""
    with torch.device("meta"):
        modules = dict(AutoModelForCausalLM.from_config(config).named_modules())
    weights = _read_weights(source, folder)
    unplaced = []
    for key, tensor in weights.items():
        if not (found := _LORA_KEY.fullmatch(key)):
            continue
        weight = getattr(modules.get(found["module"]), "weight", None)
        if weight is None:
            unplaced.append(found["module"])
            continue
        dim = tensor.shape[1] if found["side"] == "A" else tensor.shape[0]
        if dim not in weight.shape:
            shape = "x".join(map(str, weight.shape))
            raise _misfit(source, f"its {key} has size {dim}, and the model's {found['module']} is {shape}")
    if unplaced and len(unplaced) == len(weights):
        raise _misfit(source, f"the model has no module {unplaced[0]}")


def merge(source: Source, folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """`model` with the adapter added to its weights. BadInput unless every adapter weight found its place."""
    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = True
    try:
        attached = PeftModel(model, config)
        result = set_peft_model_state_dict(attached, _read_weights(source, folder))
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as error:
        raise _misfit(source, str(error)) from error
    lost = [*result.unexpected_keys, *(key for key in result.missing_keys if "lora_" in key)]
    if lost:
        raise _misfit(source, f"{len(lost)} of its weights do not match the model's, such as {lost[0]}")
    return attached.merge_and_unload(safe_merge=True)


def _fetch_weights(source: Source) -> None:
    try:
        hub.fetch(source, ADAPTER_WEIGHTS[0])
    except BadInput:  # adapters of before safetensors
        hub.fetch(source, ADAPTER_WEIGHTS[1])


def _read_weights(source: Source, folder: Path) -> dict[str, torch.Tensor]:
    try:
        return load_peft_weights(str(folder), device="cpu")
    except SafetensorError as error:
        raise source.bad(f"its weights are unreadable ({error})", "download them again") from error


def _misfit(source: Source, problem: str) -> BadInput:
    return source.bad(f"the adapter does not fit the model: {problem}", "use the base model that it was trained on")
