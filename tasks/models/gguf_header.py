"""What a GGUF file says about its model, without its weights and without torch. Split files count as one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from gguf.gguf_reader import ReaderField, ReaderTensor

from tasks.models.sources import Source
from tasks.models.spec import ModelInfo

_LANGUAGE_MODEL = "use a GGUF file of a language model"


@dataclass(frozen=True, eq=False)
class GgufFile:
    """A model's metadata, which is in its first part, and the tensors of all parts."""

    paths: tuple[Path, ...]
    fields: dict[str, ReaderField]
    tensors: dict[str, ReaderTensor]

    def get(self, key: str, default: Any = None) -> Any:
        return self.fields[key].contents() if key in self.fields else default

    @property
    def architecture(self) -> str:
        return self.get("general.architecture")


def describe(source: Source) -> ModelInfo:
    """Raises BadInput for what is no GGUF language model, and for a part of one whose other parts are missing."""
    file = read(source)
    architecture = file.architecture
    needed = [f"{architecture}.{key}" for key in ("block_count", "embedding_length", "context_length")]
    for key in (*needed, "tokenizer.ggml.tokens"):
        if key not in file.fields:
            raise source.bad(f"the file says nothing about {key!r}", _LANGUAGE_MODEL)
    n_layers, d_model, max_positions = (file.get(key) for key in needed)
    return ModelInfo(
        n_layers=n_layers,
        d_model=d_model,
        vocab_size=len(file.fields["tokenizer.ggml.tokens"].data),
        max_positions=max_positions,
        model_type=architecture,
        architecture=None,
    )


def weight_type(source: Source) -> str:
    """The type that holds most of the weights: "Q4_1", "F16"."""
    sizes: Counter[str] = Counter()
    for tensor in read(source).tensors.values():
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    [(name, _)] = sizes.most_common(1)
    return name


def local_parts(source: Source) -> list[Path]:
    """The model's files on this machine, downloaded if need be. Raises BadInput for a part that is missing."""
    names = source.gguf_files()
    folder = source.place.fetch(names)
    return [folder / name for name in names]


def read(source: Source) -> GgufFile:
    """All parts' headers. Raises BadInput for what is no whole GGUF file."""
    paths = local_parts(source)
    try:
        file = _mapped(tuple((path, path.stat().st_mtime_ns) for path in paths))
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise source.bad(f"is not a readable GGUF file ({error})", "download the file again") from error
    if not isinstance(file.get("general.architecture"), str):
        raise source.bad("the file says nothing about 'general.architecture'", _LANGUAGE_MODEL)
    count = file.get("split.count", 0)
    if count > 1 and count != len(paths):
        raise source.bad(
            f"is a part of a file that was split into {count}",
            f"keep the parts' names (NAME-00001-of-{count:05d}.gguf) and put all beside each other",
        )
    expected = file.get("split.tensors.count", len(file.tensors))
    if len(file.tensors) != expected:
        raise source.bad(f"its parts hold {len(file.tensors)} tensors, not {expected}", "download all parts again")
    return file


@lru_cache(maxsize=1)
def _mapped(parts: tuple[tuple[Path, int], ...]) -> GgufFile:
    """The headers of (path, time of change); they take seconds to read, and are asked for several times."""
    readers = [GGUFReader(path) for path, _ in parts]
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    return GgufFile(tuple(path for path, _ in parts), dict(readers[0].fields), tensors)
