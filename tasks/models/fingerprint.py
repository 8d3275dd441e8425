"""What a model is, in one string: changes iff weights, configuration, tokenizer or adapter change. No torch here.

A hub name resolves to its commit; folders and GGUF files to a checksum of their content; a folder behind a URL to
the checksums that its store keeps. Precision and device are no part of it.
"""

from __future__ import annotations

from pathlib import Path

from xxhash import xxh3_128

from tasks.models import files
from tasks.models.sources import Source, adapter_source, model_source
from tasks.models.spec import ModelRef
from tasks.places.cache import file_digest

_GGUF = 2
"""How GGUF files are read. Raised whenever a file comes to mean other weights or tokens."""

_LORA = 2
"""How adapters are merged. Raised whenever one comes to mean another model."""


def fingerprint(ref: ModelRef) -> str:
    """Like "hub-3c1b...", "folder-9af0...", "gguf2-77aa...+lora2-folder-02d1..." (with an adapter)."""
    model = source_fingerprint(model_source(ref))
    adapter = adapter_source(ref)
    return model if adapter is None else f"{model}+lora{_LORA}-{adapter.place.fingerprint(files.ADAPTER)}"


def source_fingerprint(source: Source) -> str:
    """Of a model without its adapter."""
    if source.gguf is None:
        return source.place.fingerprint(files.MODEL)
    if source.is_local:
        return f"gguf{_GGUF}-{_gguf_digest(Path(source.location))}"
    return f"url-gguf{_GGUF}-{source.place.digest(source.gguf_files())}"


def _gguf_digest(file: Path) -> str:
    """Of all parts of a split file; a part that is missing is for its reader to refuse."""
    parts = [path for name in files.gguf_parts(file.name) if (path := file.with_name(name)).is_file()]
    digests = [file_digest(path) for path in parts]
    return digests[0] if len(digests) == 1 else xxh3_128("\0".join(digests).encode()).hexdigest()
