"""A model's dimensions, from its configuration alone: no weights and, where the configuration says all, no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.models import gguf_header
from tasks.models.files import CONFIG, damaged, without_config
from tasks.models.sources import Source, model_source
from tasks.models.spec import ModelInfo, ModelRef

_NAMES = {
    "n_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "d_model": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "vocab_size": ("vocab_size",),
}
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_HEAD_WIDTHS = ("head_dim", "kv_channels", "attention_head_size", "kv_lora_rank", "qk_head_dim")
_CORRECT = f"correct {CONFIG}, or give the model as it was published"
_MAX_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")


def describe(ref: ModelRef) -> ModelInfo:
    """Raises BadInput for a source that is missing, unreachable for this user, or no model."""
    source = model_source(ref)
    if source.gguf is not None:
        return gguf_header.describe(source)
    try:
        text = source.place.read(CONFIG)
    except FileNotFoundError as error:
        raise source.bad(f"the folder has no {CONFIG}", without_config(Path(source.location))) from error
    if source.is_local and (problem := damaged(Path(source.location))):
        raise source.bad(f"its weights cannot be loaded: {problem}", "download it again")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise source.bad(f"its {CONFIG} is not JSON ({error})", "check the files") from error
    if not isinstance(config, dict) or not isinstance(config.get("text_config", {}), dict):
        raise source.bad(f"its {CONFIG} holds no settings", "check the files")
    info = _from_config(source, config)
    _check_heads(source, config.get("text_config", config), info)
    return info


def _from_config(source: Source, config: dict[str, Any]) -> ModelInfo:
    if "model_type" not in config:
        raise source.bad(f"its {CONFIG} names no model_type", "give a model in transformers format")
    text = config.get("text_config", config)
    sizes = {ours: next((text[n] for n in names if n in text), None) for ours, names in _NAMES.items()}
    if None in sizes.values():
        sizes = _sizes_with_defaults(source, config)
    architectures = config.get("architectures") or [None]
    try:
        info = ModelInfo(
            model_type=config["model_type"],
            architecture=architectures[0],
            max_positions=next((text[name] for name in _MAX_POSITIONS if text.get(name)), None),
            **sizes,
        )
    except (ValueError, KeyError, TypeError) as error:  # pydantic's is a ValueError
        raise source.bad(
            f"its {CONFIG} has values of other types than these fields have ({error})", _CORRECT
        ) from error
    for name, value in info:
        if isinstance(value, int) and not 0 < value < 2**31:
            raise source.bad(f"its {CONFIG} makes {name} {value}", _CORRECT)
    return info


def _check_heads(source: Source, text: dict[str, Any], info: ModelInfo) -> None:
    """The counts of attention heads must divide what they divide; else a model breaks where it is first run."""
    name = next((name for name in _HEADS if name in text), None)
    if name is None or isinstance(text[name], list):
        return
    heads, groups = text[name], text.get("num_key_value_heads")
    if type(heads) is not int or heads < 1:
        raise source.bad(f"its {CONFIG} has {name} = {heads!r}, which is no number of heads", _CORRECT)
    if not any(text.get(width) for width in _HEAD_WIDTHS) and info.d_model % heads:
        raise source.bad(
            f"its {CONFIG} has {name} = {heads}, which does not divide the width of the model, {info.d_model}", _CORRECT
        )
    if groups is None or isinstance(groups, list):
        return
    if type(groups) is not int or groups < 1 or heads % groups:
        raise source.bad(
            f"its {CONFIG} has num_key_value_heads = {groups!r}, which does not divide {name} = {heads}", _CORRECT
        )


def _sizes_with_defaults(source: Source, config: dict[str, Any]) -> dict[str, int]:
    """Sizes of a configuration that leaves some to transformers' defaults, as Gemma 3's does."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto import CONFIG_MAPPING

    if str(config["model_type"]) not in CONFIG_MAPPING:
        raise source.bad(
            f"transformers knows no model_type {config['model_type']!r}",
            "use a model that transformers supports without code of its own",
        )
    try:
        full = CONFIG_MAPPING[config["model_type"]].from_dict(config).get_text_config(decoder=True)
    except (StrictDataclassError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise source.bad(f"its {CONFIG} is refused by transformers ({error})", _CORRECT) from error
    return {"n_layers": full.num_hidden_layers, "d_model": full.hidden_size, "vocab_size": full.vocab_size}
