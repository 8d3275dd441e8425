"""What a GGUF file says about its model, without its weights and without torch."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

from gguf import GGUFReader

from tasks.models.sources import Source
from tasks.models.spec import ModelInfo


def describe(source: Source, path: Path) -> ModelInfo:
    """`path`: the file that `source` names. Raises BadInput for a file that is no GGUF language model."""
    try:
        fields = _read(path).fields
        architecture = fields["general.architecture"].contents()
        tokens = len(fields["tokenizer.ggml.tokens"].data)
        return ModelInfo(
            n_layers=fields[f"{architecture}.block_count"].contents(),
            d_model=fields[f"{architecture}.embedding_length"].contents(),
            vocab_size=tokens,
            max_positions=fields[f"{architecture}.context_length"].contents(),
            model_type=architecture,
            architecture=None,
        )
    except KeyError as error:
        raise source.bad(f"the file says nothing about {error}", "use a GGUF file of a language model") from error
    except (ValueError, IndexError) as error:
        raise source.bad(f"is not a readable GGUF file ({error})", "download the file again") from error


def weight_type(path: Path) -> str:
    """The type that holds most of the weights: "Q4_1", "F16"."""
    sizes: Counter[str] = Counter()
    for tensor in _read(path).tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    [(name, _)] = sizes.most_common(1)
    return name


def _read(path: Path) -> GGUFReader:
    return _mapped(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _mapped(path: Path, changed: int) -> GGUFReader:
    """The file; its header takes seconds to read, and is asked for twice."""
    return GGUFReader(path)
