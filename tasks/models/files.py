"""Which files of a model or adapter folder decide what it computes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tasks.places.place import Wanted

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

SETTINGS = (
    CONFIG,
    ADAPTER_CONFIG,
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.model",
    "*.tiktoken",
)
SAFETENSORS = ("*.safetensors", "*.safetensors.index.json")
PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin")

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
"""Files any of which makes a tokenizer."""

IGNORED_PREFIXES = (".", "consolidated")
"""Hidden files, and the second copy of the weights that Mistral publishes."""

TOKENIZER = Wanted(CONFIG, SETTINGS, ignored_prefixes=IGNORED_PREFIXES)
"""Configuration and tokenizer. Not the weights."""
MODEL = Wanted(CONFIG, SETTINGS, (SAFETENSORS, PICKLED), IGNORED_PREFIXES)
"""Weights in safetensors win over pickled ones, as they do in transformers."""
ADAPTER_TOKENIZER = Wanted(ADAPTER_CONFIG, SETTINGS, ignored_prefixes=IGNORED_PREFIXES)
ADAPTER = Wanted(ADAPTER_CONFIG, SETTINGS, (SAFETENSORS, PICKLED), IGNORED_PREFIXES)

_GGUF_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


def gguf_parts(name: str) -> list[str]:
    """Names of all files of the GGUF model that the file `name` belongs to, the first part first."""
    part = _GGUF_PART.fullmatch(name)
    if part is None:
        return [name]
    count = int(part["count"])
    return [f"{part['stem']}-{n:05d}-of-{count:05d}{part['suffix']}" for n in range(1, count + 1)]


def missing_part(name: str, count: int) -> tuple[str, str]:
    """Problem and remedy where the part `name` of `count` is not beside the others."""
    return f"is split into {count} files, of which {name} is missing", "put all parts beside each other"


def without_config(folder: Path) -> str:
    """What to give instead of a folder that has no configuration of a model."""
    names = sorted(path.name for path in folder.iterdir())
    if gguf := [name for name in names if name.lower().endswith(".gguf")]:
        return f"name a GGUF file in it: {folder / gguf[0]}"
    if ADAPTER_CONFIG in names:
        return "it is an adapter: give it as model.adapter, and as model.source the model that it was trained on"
    return "give a model in transformers format"


def bad_pickle(name: str) -> tuple[str, str]:
    """Problem and remedy for weights that can't be unpickled: what else a pickle does, it does to this machine."""
    return f"its pickled weights {name} are damaged or hold more than tensors", "give the weights as safetensors"


def damaged(folder: Path) -> str | None:
    """What is wrong with a safetensors file of `folder`, by its header and its size: it was cut off, or is none."""
    for name in weights(path.name for path in folder.iterdir()):
        path = folder / name
        if not name.endswith(".safetensors") or not path.is_file():
            continue
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if length <= size else b""
        try:
            tensors = [value["data_offsets"][1] for key, value in json.loads(header).items() if key != "__metadata__"]
            end = 8 + length + max(tensors, default=0)
        except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
            return f"{name} has no header of safetensors"
        if size != end:
            return f"{name} has {size} bytes and should have {end}"
    return None


def weights(names: Iterable[str]) -> list[str]:
    """The weights among `names`."""
    names = list(names)
    return MODEL.matching(names, SAFETENSORS) or MODEL.matching(names, PICKLED)


def missing(folder: Path) -> str | None:
    """Name of a file without which the model in `folder` cannot be loaded; None when it is whole.

    Raises ValueError for an index of shards that is none.
    """
    names = [path.name for path in folder.iterdir()]
    wanted = [CONFIG] if weights(names) else [CONFIG, "model.safetensors"]
    for name in weights(names):
        if name.endswith(".index.json"):
            index = json.loads((folder / name).read_bytes())
            if not isinstance(index, dict) or "weight_map" not in index:
                raise ValueError(f"{name} has no weight_map")
            wanted += sorted(set(index["weight_map"].values()))
    return next((name for name in wanted if name not in names), None)
