"""What a GGUF file says about its model, without its weights and without torch."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFReader

from tasks.models.sources import Source
from tasks.models.spec import ModelInfo


def describe(source: Source, path: Path) -> ModelInfo:
    """`path`: the file that `source` names. Raises BadInput for a file that is no GGUF language model."""
    try:
        fields = GGUFReader(path).fields
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
