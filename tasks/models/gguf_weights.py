"""GGUF files, dequantized once into an ordinary model folder of the cache."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from tasks.models.cache import build_once
from tasks.models.fingerprint import source_fingerprint
from tasks.models.sources import Source
from tasks.models.spec import Dtype

_FORMAT = 1
"""Raise it when the conversion below changes."""
_SINGLE_DIGITS = {"smollm", "starcoder", "refact"}
"""Values of `tokenizer.ggml.pre` that cut numbers into digits first; transformers 5.19 leaves that step out."""


def converted(source: Source, path: Path, dtype: Dtype) -> Path:
    """Folder with `path`'s weights in `dtype` (safetensors) and its tokenizer.

    Takes some ten seconds per 100 MB the first time. Raises BadInput for what transformers cannot read.
    """
    fingerprint = source_fingerprint(source)
    name = f"gguf/{fingerprint}-{dtype}-transformers-{transformers.__version__}-v{_FORMAT}"

    def convert(folder: Path) -> None:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=getattr(torch, dtype),
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        except (ValueError, KeyError, IndexError, NotImplementedError) as error:
            raise source.bad(
                f"transformers cannot read this GGUF file ({error})", "use the model in transformers format"
            ) from error
        _cut_numbers_as_trained(tokenizer, path)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return build_once(name, convert)


def _cut_numbers_as_trained(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Without this "\\n\\n1)" loses its double newline token: a digit must not end a run of white space."""
    scheme = GGUFReader(path).fields.get("tokenizer.ggml.pre")
    if scheme is not None and scheme.contents() in _SINGLE_DIGITS:
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        )
