"""LoRA adapters: found, checked against the model before its weights are read, then merged into them.

Merged rather than attached: W + B A * scale is computed once in the model's own precision, and every engine then
runs plain linear layers. Both are run on the same tokens at each merge, and must agree up to rounding.
"""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tasks.errors import BadInput
from tasks.models import files
from tasks.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tasks.models.sources import Source
from tasks.places.hub import HubRepository

_LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_SAVED_TWICE = re.compile(r"\.modules_to_save(\.default)?\.")
_UNMERGEABLE = {
    "alora_invocation_tokens": "it is active only after certain tokens",
    "layer_replication": "it repeats blocks of the model",
    "arrow_config": "it chooses among other adapters for each token",
}
"""Settings under which no change of weights computes what the adapter does."""
_PROBE_TOKENS = 64
_ROUNDING = {torch.float32: 1e-3}
_ROUNDING_OF_HALF = 0.1
"""Largest |merged - attached| / |attached| of the probe's logits that is rounding, in precisions not named above."""


def local_folder(source: Source) -> Path:
    """Folder with the adapter's configuration, weights and tokenizer, downloaded if need be. BadInput if no LoRA."""
    if isinstance(source.place, HubRepository):
        folder = source.place.fetch(files.ADAPTER_TOKENIZER)
        _fetch_weights(source.place)
    else:
        folder = source.place.fetch(files.ADAPTER)
    missing = [ADAPTER_CONFIG] if not (folder / ADAPTER_CONFIG).is_file() else []
    if not any((folder / name).is_file() for name in ADAPTER_WEIGHTS):
        missing.append(ADAPTER_WEIGHTS[0])
    if missing:
        raise source.bad(f"has no {' and no '.join(missing)}", "give a folder that peft's save_pretrained wrote")
    config = _settings(source, folder)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise source.bad(f"is a {kind} adapter", "only LoRA adapters can be merged")
    for name, why in _UNMERGEABLE.items():
        if config.get(name):
            raise source.bad(f"can't be merged into weights: {why} ({name})", "give a plain LoRA adapter")
    return folder


def has_tokenizer(folder: Path) -> bool:
    """Whether the adapter comes with a tokenizer of its own, which is the one it was trained with."""
    return any((folder / name).is_file() for name in files.TOKENIZERS)


def check_fits(source: Source, folder: Path, config: PretrainedConfig) -> None:
    """Compare the adapter's shapes with the model's, neither of whose weights is needed for it."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))  # resizing changes it
    weights = _read_weights(source, folder)
    rows = _rows(source, model, weights)
    if rows != _embeddings(model).weight.shape[0]:
        if not has_tokenizer(folder):
            raise source.bad(
                f"it was trained with {rows} tokens where the model has {_embeddings(model).weight.shape[0]}, and has "
                "no tokenizer with it",
                f"put the tokenizer that it was trained with beside {ADAPTER_CONFIG} (tokenizer.json and "
                "tokenizer_config.json)",
            )
        with torch.device("meta"):
            model.resize_token_embeddings(rows, mean_resizing=False)
    modules = dict(model.named_modules())
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
    """`model` with the adapter added to its weights, resized to the adapter's vocabulary.

    Raises BadInput unless every adapter weight found its place and the merged model computes what the attached does.
    """
    weights = _read_weights(source, folder)
    rows = _rows(source, model, weights)
    if rows != _embeddings(model).weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    try:
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = True
        attached = PeftModel(model, config).eval()
        result = set_peft_model_state_dict(attached, weights)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # peft checks an adapter's settings with errors of every kind
        raise _misfit(source, str(error)) from error
    lost = [*result.unexpected_keys, *_unfilled(attached, result.missing_keys)]
    if lost:
        raise _misfit(source, f"{len(lost)} of its weights do not match the model's, such as {lost[0]}")
    probe = _probe(model, config, rows)
    before = attached(input_ids=probe, use_cache=False).logits
    _separate(model)
    merged = attached.merge_and_unload()
    _settle_tying(merged)
    _check_same(source, before, merged(input_ids=probe, use_cache=False).logits)
    return merged


def _unfilled(attached: PeftModel, missing: list[str]) -> list[str]:
    """Of the names that no file fills, those of the adapter, but for second names of what is filled."""
    own = {n: p for n, p in attached.named_parameters(remove_duplicate=False) if ".default" in n}
    filled = {id(parameter) for name, parameter in own.items() if name not in missing}
    return [name for name in missing if name in own and id(own[name]) not in filled]


def _rows(source: Source, model: PreTrainedModel, weights: dict[str, Tensor]) -> int:
    """Vocabulary that the adapter was trained with: the model's, unless the adapter's own embeddings are of another."""
    now = _embeddings(model).weight.shape[0]
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, int] = {}
    whole: set[str] = set()
    for role, module in (("embeddings", model.get_input_embeddings()), ("head", model.get_output_embeddings())):
        for key, tensor in weights.items():
            part = key.removeprefix(f"base_model.model.{names[module]}.")
            if part in ("weight", "base_layer.weight", "modules_to_save.weight"):
                found[role] = tensor.shape[0]
                whole.add(role)
            elif part == "lora_embedding_A":
                found[role] = tensor.shape[1]
            elif part == "lora_B.weight" and role == "head":
                found[role] = tensor.shape[0]
    sizes = set(found.values()) or {now}
    if len(sizes) > 1:
        raise _misfit(source, f"its embeddings have {found['embeddings']} tokens and its head {found['head']}")
    [rows] = sizes
    if rows > now and whole != {"embeddings", "head"} and not (whole and _is_tied(model)):
        raise source.bad(
            f"it was trained with {rows} tokens where the model has {now}, and holds no weights of the new ones",
            "save it again with peft's save_pretrained(..., save_embedding_layers=True)",
        )
    return rows


def _embeddings(model: PreTrainedModel) -> nn.Module:
    return _base(model.get_input_embeddings())


def _base(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _is_tied(model: PreTrainedModel) -> bool:
    return getattr(_base(model.get_output_embeddings()), "weight", None) is getattr(_embeddings(model), "weight", 0)


def _separate(model: PreTrainedModel) -> None:
    """Attached, LoRA on one of two tied weights changes that one alone: give the head a weight of its own."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if _is_tied(model) and (isinstance(embeddings, LoraLayer) or isinstance(head, LoraLayer)):
        _base(head).weight = nn.Parameter(_base(head).weight.detach().clone(), requires_grad=False)


def _settle_tying(merged: PreTrainedModel) -> None:
    """Let the configuration say whether head and embeddings are one weight: other programs go by it."""
    if not _is_tied(merged) and merged.config.get_text_config(decoder=True).tie_word_embeddings:
        merged.config.tie_word_embeddings = False
        merged.config.get_text_config(decoder=True).tie_word_embeddings = False
        merged.all_tied_weights_keys = {}


def _probe(model: PreTrainedModel, config: PeftConfig, rows: int) -> Tensor:
    """Token ids [1, n] from all of the vocabulary, those that the adapter changes by name among them."""
    length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or _PROBE_TOKENS
    trained = config.trainable_token_indices or []
    if isinstance(trained, dict):
        trained = [token for tokens in trained.values() for token in tokens]
    n = min(_PROBE_TOKENS, rows, length)
    ids = [*sorted(set(trained))[: n // 2], *torch.linspace(0, rows - 1, n).long().tolist()][:n]
    return torch.tensor([[*ids[:-1], rows - 1]], device=_embeddings(model).weight.device)


def _check_same(source: Source, attached: Tensor, merged: Tensor) -> None:
    attached, merged, limit = attached.float(), merged.float(), _ROUNDING.get(attached.dtype, _ROUNDING_OF_HALF)
    if not attached.isfinite().all():
        return  # the model itself overflows; that has its own message
    off = float((merged - attached).norm() / (attached - attached.mean()).norm())
    if not off <= limit:
        raise source.bad(
            f"can't be merged into weights: the merged model's logits differ from the attached one's by {off:.1%}",
            "give an adapter of plain LoRA layers, or merge it yourself and give the merged model",
        )


def _settings(source: Source, folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    except (ValueError, RecursionError) as error:
        raise source.bad(f"its {ADAPTER_CONFIG} is not JSON ({error})", "download it again") from error
    if not isinstance(found, dict):
        raise source.bad(f"its {ADAPTER_CONFIG} holds no settings", "download it again")
    return found


def _fetch_weights(repository: HubRepository) -> None:
    """Of the adapter alone: the repository may hold the weights of a whole model too."""
    try:
        repository.file(ADAPTER_WEIGHTS[0])
    except BadInput:  # adapters of before safetensors
        repository.file(ADAPTER_WEIGHTS[1])


def _read_weights(source: Source, folder: Path) -> dict[str, Tensor]:
    try:
        weights = load_peft_weights(str(folder), device="cpu")
    except SafetensorError as error:
        raise source.bad(f"its weights are unreadable ({error})", "download them again") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise source.bad(*files.bad_pickle(ADAPTER_WEIGHTS[1])) from error
    for name in list(weights):  # resized layers that are saved as a whole are there twice, as peft 0.21 writes them
        if (plain := _SAVED_TWICE.sub(".", name)) != name:
            weights.setdefault(plain, weights.pop(name))
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise source.bad(f"its {name} holds values that are NaN or infinite", "use another state of its training")
    return weights


def _misfit(source: Source, problem: str) -> BadInput:
    return source.bad(f"the adapter does not fit the model: {problem}", "use the base model that it was trained on")
