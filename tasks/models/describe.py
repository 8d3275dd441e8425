"""A model's dimensions, from its configuration alone: no weights and, where the configuration says all, no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.models import gguf_header, hub, remote
from tasks.models.files import CONFIG
from tasks.models.sources import Source, model_source
from tasks.models.spec import ModelInfo, ModelRef

_NAMES = {
    "n_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "d_model": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "vocab_size": ("vocab_size",),
}
_MAX_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")


def describe(ref: ModelRef) -> ModelInfo:
    """Raises BadInput for a source that is missing, unreachable for this user, or no model."""
    source = model_source(ref)
    match source.kind:
        case "gguf" | "gguf_url":
            return gguf_header.describe(source)
        case "hub":
            text = hub.fetch(source, CONFIG).read_bytes()
        case "folder":
            text = _config_of_folder(source)
        case "url":
            text = remote.read(source, CONFIG)
    try:
        config = json.loads(text)
    except ValueError as error:
        raise source.bad(f"its {CONFIG} is not JSON ({error})", "check the files") from error
    return _from_config(source, config)


def _from_config(source: Source, config: dict[str, Any]) -> ModelInfo:
    if "model_type" not in config:
        raise source.bad(f"its {CONFIG} names no model_type", "give a model in transformers format")
    text = config.get("text_config", config)
    sizes = {ours: next((text[n] for n in names if n in text), None) for ours, names in _NAMES.items()}
    if None in sizes.values():
        sizes = _sizes_with_defaults(source, config)
    architectures = config.get("architectures") or [None]
    return ModelInfo(
        model_type=config["model_type"],
        architecture=architectures[0],
        max_positions=next((text[name] for name in _MAX_POSITIONS if text.get(name)), None),
        **sizes,
    )


def _sizes_with_defaults(source: Source, config: dict[str, Any]) -> dict[str, int]:
    """Sizes of a configuration that leaves some to transformers' defaults, as Gemma 3's does."""
    from transformers.models.auto import CONFIG_MAPPING

    if config["model_type"] not in CONFIG_MAPPING:
        raise source.bad(
            f"transformers knows no model_type {config['model_type']!r}",
            "use a model that transformers supports without code of its own",
        )
    full = CONFIG_MAPPING[config["model_type"]].from_dict(config).get_text_config(decoder=True)
    return {"n_layers": full.num_hidden_layers, "d_model": full.hidden_size, "vocab_size": full.vocab_size}


def _config_of_folder(source: Source) -> bytes:
    try:
        return (Path(source.location) / CONFIG).read_bytes()
    except FileNotFoundError as error:
        raise source.bad(f"the folder has no {CONFIG}", "give a model in transformers format") from error
