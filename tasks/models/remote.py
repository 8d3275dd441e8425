"""Model folders and files behind an fsspec URL: s3://, gs://, hf://, https:// and whatever else fsspec speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from fsspec import AbstractFileSystem
from xxhash import xxh3_128

from tasks.artifacts.retry import explain, is_transient, persist
from tasks.errors import BadInput, StoreError, TransientError
from tasks.models.cache import build_once
from tasks.models.files import gguf_parts, missing_part, relevant, settings
from tasks.models.sources import Source
from tasks.places.opening import open_location

_CONTENT_TAGS = ("md5Hash", "crc32c", "ETag", "etag", "content_md5", "blob_id")
"""Keys under which file systems report something that changes with an object's content, best first."""
_CHUNK = 4 * 2**20
PATIENCE_SECONDS = 120.0

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    name: str
    path: str
    """As its file system calls it."""
    size: int
    tag: str
    """Changes when the content does: what the store reports, else a checksum of the content."""


def list_files(source: Source, with_weights: bool = True) -> list[RemoteFile]:
    """The files that matter of a folder, or a GGUF file with all its parts; BadInput when there are none."""
    chosen = relevant if with_weights else settings
    fs, root = _open(source)

    def listing() -> list[RemoteFile]:
        fs.invalidate_cache()
        if source.kind == "gguf_url":
            infos = _gguf_infos(source, fs, root)
        else:
            listed = fs.ls(root, detail=True)
            infos = {i["name"].rpartition("/")[2]: i for i in listed if i["type"] == "file"}
            infos = {name: infos[name] for name in chosen(infos)}
        return [RemoteFile(name, i["name"], i["size"], content_tag(fs, i)) for name, i in infos.items()]

    files = persistently(source, listing)
    if not files:
        raise source.bad("there is no model in this folder", "check the URL")
    return files


def _gguf_infos(source: Source, fs: AbstractFileSystem, root: str) -> dict[str, dict]:
    fs.info(root)
    folder, _, named = root.rpartition("/")
    infos = {}
    for name in gguf_parts(named):
        try:
            infos[name] = fs.info(f"{folder}/{name}")
        except FileNotFoundError as error:
            raise source.bad(*missing_part(name, len(gguf_parts(named)))) from error
    return infos


def listing_digest(files: Sequence[RemoteFile]) -> str:
    digest = xxh3_128()
    for file in files:
        digest.update(f"{file.name}\0{file.size}\0{file.tag}\0".encode())
    return digest.hexdigest()


def read(source: Source, name: str) -> bytes:
    """Content of the file `name` of a folder."""
    fs, root = _open(source)
    return persistently(source, lambda: fs.cat_file(f"{root}/{name}"))


def download(source: Source, with_weights: bool = True) -> Path:
    """The files that matter, downloaded once into a cache folder named by what they are.

    Raises TransientError when an object changes on the way or arrives incomplete.
    """
    files = list_files(source, with_weights)

    def fetch(folder: Path) -> None:
        fs, _ = _open(source)
        for file in files:
            persistently(source, partial(fs.get_file, file.path, str(folder / file.name)))
        if list_files(source, with_weights) != files:
            raise TransientError(f"{source.location} changed while it was downloaded")
        for file in files:
            if (folder / file.name).stat().st_size != file.size:
                raise TransientError(f"{file.path} arrived incomplete")

    return build_once(f"models/{listing_digest(files)}", fetch)


@contextmanager
def errors_of(source: Source) -> Iterator[None]:
    """Say whose fault it is when a file system fails: BadInput for what no retry mends, else TransientError."""
    try:
        yield
    except FileNotFoundError as error:
        raise source.bad("there is nothing at this URL", "check bucket and path") from error
    except StoreError as error:
        raise source.bad(error.problem, error.remedy) from error
    except (BadInput, TransientError):
        raise
    except Exception as error:
        if is_transient(error):
            raise TransientError(f"{source.location}: {error}") from error
        if (known := explain(error, source.location)) is not None:
            raise source.bad(known.problem, known.remedy) from error
        raise


def persistently(source: Source, action: Callable[[], T]) -> T:
    """`action()`, again while faults pass."""
    with errors_of(source):
        return persist(action, source.location, PATIENCE_SECONDS)


def _open(source: Source) -> tuple[AbstractFileSystem, str]:
    """The URL's file system and its path there."""
    return open_location(source.location, source.field)


def content_tag(fs: AbstractFileSystem, info: dict) -> str:
    """What the file system reports that changes with a file's content, else a checksum of the content."""
    for key in _CONTENT_TAGS:
        if info.get(key):
            return f"{key}:{info[key]}"
    digest = xxh3_128()
    with fs.open(info["name"], "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return f"xxh3_128:{digest.hexdigest()}"
