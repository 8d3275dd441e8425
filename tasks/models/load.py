"""Load a model, ready for hooks: eval mode, no gradients, with the places of its residual stream.

Attention is transformers' default for the architecture: scaled_dot_product_attention where it has one, else eager.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from huggingface_hub import constants
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tasks.errors import TransientError
from tasks.models import adapter, gguf_weights
from tasks.models.files import MODEL, TOKENIZER, bad_pickle, damaged, missing, weights
from tasks.models.fingerprint import fingerprint
from tasks.models.layout import Layout, computes_on, verify
from tasks.models.placement import Placement, is_split, placement, spread
from tasks.models.quantization import compute_dtype, stays_quantized
from tasks.models.quantization import method as quantization_method
from tasks.models.sources import Source, adapter_source, model_source
from tasks.models.spec import Dtype, ModelRef
from tasks.places.cache import build_once
from tasks.places.scratch import Scratch


@dataclass(frozen=True, eq=False)
class LoadedModel:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    ref: ModelRef
    spread: str = ""
    """How it is spread over devices, for people: "3.1 GiB on 2 GPUs, 10.2 GiB in memory"."""

    @property
    def device(self) -> torch.device:
        """Where token ids go in. A split model's later blocks may be elsewhere."""
        return computes_on(self.layout.embeddings)

    @property
    def pad_id(self) -> int:
        """Token for padding; masked, so its choice never changes a result."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        return 0


def load(
    ref: ModelRef,
    device: str | torch.device | Placement = "cpu",
    expected_fingerprint: str | None = None,
    *,
    offload: bool = False,
) -> LoadedModel:
    """Fetch, convert and load `ref`; an adapter is merged. Quantized weights come in their checkpoint's precision.

    device: "cuda" is one GPU, or all visible ones where the weights do not fit one; or a device for each part.
    expected_fingerprint: what an earlier stage recorded; another one is refused.
    offload: what fits no GPU goes to main memory, and what fits neither stays on disk; it is brought to where it
    computes in every pass, so that batches should be large. On a CPU: main memory, then disk.
    Raises BadInput for whatever is wrong with the reference, before weights are read where that can be known, and
    TransientError when a place cannot be reached for now.
    """
    source, lora = model_source(ref), adapter_source(ref)
    if expected_fingerprint is not None:
        _check_unchanged(ref, source, expected_fingerprint)
    folder = _folder(source, ref.dtype)
    config = _config(source, folder)
    lora_folder = None
    if lora is not None:
        lora_folder = adapter.local_folder(lora)
        adapter.check_fits(lora, lora_folder, config)
    tokenizer = _tokenizer_of(source, folder, lora, lora_folder)

    dtype = compute_dtype(config, getattr(torch, ref.dtype))
    stored = _weight_bytes(folder) if stays_quantized(source, config) else None
    if isinstance(device, Mapping):
        where = device
    else:
        where = placement(source, config, dtype, device, offload=offload, stored=stored)
    if lora is not None and is_split(where):  # merging needs the weights in one place
        folder, lora = local_folder(ref), None
    model = _weights(source, folder, config, dtype, where)
    _check_finite(source, model)
    if lora is not None:
        model = adapter.merge(lora, lora_folder, model)
    model = model.eval().requires_grad_(False)
    layout = Layout.of(model)
    verify(model, layout)
    _check_vocabulary(source, tokenizer, layout)
    return LoadedModel(model, tokenizer, layout, ref, spread(model, where))


def load_tokenizer(ref: ModelRef) -> PreTrainedTokenizerBase:
    """The tokenizer alone, without fetching the model's weights (of a GGUF file: after its one conversion).

    An adapter's own tokenizer wins, and the adapter is checked against the model's configuration. Raises like `load`.
    """
    source, lora = model_source(ref), adapter_source(ref)
    folder = _settings(source, ref.dtype)
    lora_folder = None
    if lora is not None:
        lora_folder = adapter.local_folder(lora)
        adapter.check_fits(lora, lora_folder, _config(source, folder))
    return _tokenizer_of(source, folder, lora, lora_folder)


def load_config(ref: ModelRef) -> PretrainedConfig:
    """The configuration alone, as `load_tokenizer`; an adapter changes nothing in it but the vocabulary's size."""
    source = model_source(ref)
    return _config(source, _settings(source, ref.dtype))


def local_folder(ref: ModelRef, expected_fingerprint: str | None = None) -> Path:
    """`ref` on this machine as a folder in transformers format: for an engine that reads the weights itself.

    A GGUF file is converted and an adapter merged, in `ref.dtype`, once per machine. Raises like `load`.
    """
    source = model_source(ref)
    if expected_fingerprint is not None:
        _check_unchanged(ref, source, expected_fingerprint)
    if ref.adapter is None:
        return _folder(source, ref.dtype)

    def merge(folder: Path) -> None:
        loaded = load(ref)
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)

    name = f"{fingerprint(ref)}-{ref.dtype}-transformers-{transformers.__version__}-peft-{peft.__version__}"
    return build_once(f"merged/{name}", merge)


def _check_unchanged(ref: ModelRef, source: Source, expected: str) -> None:
    now = fingerprint(ref)
    if now != expected:
        raise source.bad(
            f"the model changed: it was {expected} when the run began and is {now} now",
            "start the run again, with a fixed revision for a Hugging Face id",
        )


def _settings(source: Source, dtype: Dtype) -> Path:
    """Folder with the model's configuration and tokenizer; without its weights where that is less."""
    return _folder(source, dtype) if source.gguf is not None else source.place.fetch(TOKENIZER)


def _folder(source: Source, dtype: Dtype) -> Path:
    """The model on this machine, in transformers format and whole."""
    if source.gguf is not None:
        return gguf_weights.converted(source, dtype)
    folder = source.place.fetch(MODEL)
    try:
        name = missing(folder)
    except ValueError as error:
        raise source.bad(f"the index of its weights is damaged ({error})", "check that all files are whole") from error
    if name is None:
        if problem := damaged(folder):
            raise source.bad(f"its weights cannot be loaded: {problem}", "download it again")
        return folder
    if source.on_hub and not constants.is_offline_mode():
        raise TransientError(f"{source.location}: the hub cannot be reached and the local cache has no {name}")
    raise source.bad(f"there is no {name} in {folder}", "give a model in transformers format with all its files")


def _config(source: Source, folder: Path) -> PretrainedConfig:
    """Raises BadInput for one that transformers can't read or can't build a model from."""
    remedy = "use a model that this version of transformers supports without code of its own, with its own config.json"
    try:
        config = AutoConfig.from_pretrained(folder)
        if (folder / "generation_config.json").is_file():  # transformers does without a damaged one, unnoticed
            GenerationConfig.from_pretrained(folder)
    except Exception as error:  # the architecture's own code runs here and below, and may fail in its own way
        raise source.bad(f"transformers cannot read its configuration ({error})", remedy) from error
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    except Exception as error:
        problem = f"transformers cannot build a {config.model_type} from its configuration ({error})"
        raise source.bad(problem, remedy) from error
    return config


def _tokenizer_of(
    source: Source, folder: Path, lora: Source | None, lora_folder: Path | None
) -> PreTrainedTokenizerBase:
    """The tokenizer that an adapter was trained with, where it has one, else the model's."""
    if lora is not None and adapter.has_tokenizer(lora_folder):
        return _tokenizer(lora, lora_folder)
    return _tokenizer(source, folder)


def _tokenizer(source: Source, folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain Exception for files that it can't read
        raise source.bad(
            f"has no tokenizer that transformers can load ({error})", "put the tokenizer's files beside the model's"
        ) from error


def _check_finite(source: Source, model: PreTrainedModel) -> None:
    """Raises BadInput for weights that are NaN or infinite. What stays on disk is not looked at."""
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if weight.is_meta or not weight.is_floating_point() or weight.itemsize < 2 or not weight.numel():
            continue  # of weights that stay quantized, the scales say it
        if not all(bool(bound.isfinite()) for bound in weight.detach().aminmax()):
            overflow = "; float16 holds values up to 65504 only" if weight.dtype == torch.float16 else ""
            raise source.bad(
                f"its weight {name} holds values that are NaN or infinite{overflow}",
                "use dtype bfloat16 or float32" if overflow else "download it again, or use another checkpoint",
            )


def _check_vocabulary(source: Source, tokenizer: PreTrainedTokenizerBase, layout: Layout) -> None:
    """Every ordinary token needs an embedding. Added ones may lack it: text-only Gemma 3 has no image token."""
    rows, added = layout.embeddings.weight.shape[0], tokenizer.added_tokens_decoder
    if any(token >= rows and token not in added for token in tokenizer.get_vocab().values()):
        raise source.bad(
            f"the tokenizer has {len(tokenizer)} tokens and the model embeds {rows}",
            "use the tokenizer that belongs to the model",
        )


def attention_implementation(config) -> str | None:
    """transformers' default, except where scores are soft-capped (Gemma 2): sdpa leaves the cap out in silence."""
    return "eager" if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None) else None


def _weight_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in weights(path.name for path in folder.iterdir()))


def _weights(
    source: Source, folder: Path, config: PretrainedConfig, dtype: torch.dtype, where: Placement
) -> PreTrainedModel:
    """The model, with every parameter from the checkpoint: none is left at its random initial value.

    What stays on disk is read from the checkpoint's own safetensors files in every pass. Where the model keeps
    weights in another form (experts in one tensor, pickled files), transformers writes those once more, to a folder
    of the product's cache that goes with the model.
    """
    if "disk" not in where.values():
        return _read(source, folder, config, dtype, where)
    with Scratch("offloaded") as rewritten:
        model = _read(source, folder, config, dtype, where, rewritten.folder)
        rewritten.give_to(model)
    return model


def _read(
    source: Source,
    folder: Path,
    config: PretrainedConfig,
    dtype: torch.dtype,
    where: Placement,
    rewritten: Path | None = None,
) -> PreTrainedModel:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map=dict(where),
            attn_implementation=attention_implementation(config),
            output_loading_info=True,
            offload_folder=rewritten,
            ignore_mismatched_sizes=True,  # they are named below
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # files of users are read here, by many libraries
        if rewritten is not None and "No space left" in str(error):
            raise source.bad(
                f"the part of its weights that stays on disk has no room in {rewritten.parent} ({error})",
                "free some there, set TOMOGRAPH_CACHE to a folder on a larger disk, or give the process more memory",
            ) from error
        if pickled := [name for name in weights(path.name for path in folder.iterdir()) if name.endswith(".bin")]:
            problem, remedy = bad_pickle(pickled[0])
            raise source.bad(f"its weights cannot be loaded: {problem}", remedy) from error
        raise source.bad(f"its weights cannot be loaded ({error})", "check that all files are whole") from error
    _check_report(source, config, report)
    return model


_NO_WEIGHTS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|masked_bias|mtp)(\.|$)")
"""Entries of checkpoints that a language model does without: tables that are computed, heads for later tokens."""


def _check_report(source: Source, config: PretrainedConfig, report: dict[str, Any]) -> None:
    """Every weight of the model is from its files, and every weight in its files is in the model."""
    whole = "give the files of one causal language model, all as they were published together"
    if report["mismatched_keys"]:
        name, *shapes = min(report["mismatched_keys"])
        stored, expected = ("x".join(map(str, shape)) for shape in shapes)
        raise source.bad(
            f"its weights cannot be loaded: {name} is {stored} in its files, and {expected} by its config.json", whole
        )
    if report["missing_keys"]:
        absent = sorted(report["missing_keys"])
        raise source.bad(
            f"the checkpoint lacks {len(absent)} of the model's weights, such as {absent[0]}",
            "give a checkpoint of a causal language model",
        )
    unread = sorted(name for name in report["unexpected_keys"] if not _NO_WEIGHTS.search(name))
    if unread and quantization_method(config) is None:  # quantized checkpoints carry scales that only some kernels use
        raise source.bad(
            f"{len(unread)} weights in its files have no place in the model, such as {unread[0]}",
            f"correct its config.json, or {whole}",
        )
