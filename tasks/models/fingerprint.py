"""What a model is, in one string: changes iff weights, configuration, tokenizer or adapter change. No torch here.

A hub name resolves to its commit; folders and GGUF files to a checksum of their content; a folder behind a URL to
the checksums that its store keeps. Precision and device are no part of it.
"""

from __future__ import annotations

from pathlib import Path

from xxhash import xxh3_128

from tasks.models import files, hub, remote
from tasks.models.cache import file_digest
from tasks.models.sources import Source, adapter_source, model_source
from tasks.models.spec import ModelRef

_GGUF = 2
"""How GGUF files are read. Raised whenever a file comes to mean other weights or tokens."""

_LORA = 2
"""How adapters are merged. Raised whenever one comes to mean another model."""


def fingerprint(ref: ModelRef) -> str:
    """Like "hub-3c1b...", "folder-9af0...", "gguf2-77aa...+lora2-folder-02d1..." (with an adapter)."""
    model = source_fingerprint(model_source(ref))
    adapter = adapter_source(ref)
    return model if adapter is None else f"{model}+lora{_LORA}-{source_fingerprint(adapter, files.ADAPTER_CONFIG)}"


def source_fingerprint(source: Source, config: str = files.CONFIG) -> str:
    """`config`: the file that a hub repository of this kind has in any case."""
    match source.kind:
        case "hub":
            return f"hub-{hub.commit_of(hub.fetch(source, config))}"
        case "folder":
            return f"folder-{_folder_digest(Path(source.location))}"
        case "gguf":
            return f"gguf{_GGUF}-{_gguf_digest(Path(source.location))}"
        case "gguf_url":
            return f"url-gguf{_GGUF}-{remote.listing_digest(remote.list_files(source))}"
        case "url":
            return f"url-{remote.listing_digest(remote.list_files(source))}"


def _gguf_digest(file: Path) -> str:
    """Of all parts of a split file; a part that is missing is for its reader to refuse."""
    parts = [path for name in files.gguf_parts(file.name) if (path := file.with_name(name)).is_file()]
    digests = [file_digest(path) for path in parts]
    return digests[0] if len(digests) == 1 else xxh3_128("\0".join(digests).encode()).hexdigest()


def _folder_digest(folder: Path) -> str:
    digest = xxh3_128()
    for name in files.relevant(path.name for path in folder.iterdir() if path.is_file()):
        digest.update(f"{name}\0{file_digest(folder / name)}\0".encode())
    return digest.hexdigest()
