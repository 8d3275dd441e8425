"""Files of text: found by a path, folder or pattern on any filesystem that fsspec speaks, and opened.

Credentials follow each ecosystem's own conventions, as the store's do, and never enter a URL.
"""

from __future__ import annotations

import glob
import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from typing import BinaryIO, Literal
from urllib.parse import urlsplit

import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.compression import compr
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import infer_compression

from tasks.artifacts.location import open_location
from tasks.errors import BadInput
from tasks.outliers.patient_file import FIELD, PatientFile, persistently
from tasks.outliers.spec import TextSource

Format = Literal["jsonl", "parquet", "text"]

ENDINGS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",  # what many published data sets call their JSON lines
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
BUFFER_BYTES = 2**20

_ARROWS = {".zst": "zstd", ".lz4": "lz4"}
"""Compressions for which fsspec needs a package more, and pyarrow does not."""
_DAMAGE = (EOFError, OSError, zlib.error, LZMAError, zipfile.BadZipFile, pa.ArrowException)
"""What decompression raises; the file's own faults never come as these (see `PatientFile`)."""


@dataclass(frozen=True)
class TextFile:
    fs: AbstractFileSystem
    path: str
    """As its filesystem calls it."""
    url: str
    """For messages."""
    format: Format
    compression: str | None

    @contextmanager
    def raw(self) -> Iterator[BinaryIO]:
        """The file as it is, buffered."""
        with io.BufferedReader(PatientFile(self.fs, self.path, self.url), BUFFER_BYTES) as stream:
            yield stream

    @contextmanager
    def decompressed(self) -> Iterator[BinaryIO]:
        """The file's content. BadInput when it is no whole file of its compression."""
        with self.raw() as raw:
            if self.compression is None:
                yield raw
                return
            try:
                if self.compression in _ARROWS.values():
                    stream = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), self.compression))
                else:
                    stream = compr[self.compression](raw, mode="rb")
                with closing(stream):
                    yield stream
            except _DAMAGE as error:
                raise BadInput(
                    FIELD,
                    self.url,
                    f"cannot be decompressed ({error})",
                    f"check that it is a whole {self.compression} file",
                ) from error


def find(source: TextSource) -> list[TextFile]:
    """The files that `source` names, sorted by path; of a folder, and all below it, those with known endings.

    Raises BadInput when there are none, or an ending that `auto` can't tell the format by.
    """
    fs, root = _open(source.location)
    is_folder, paths = persistently(lambda: _listing(fs, root), source.location)
    if is_folder:
        wanted = set(ENDINGS.values()) if source.format == "auto" else {source.format}
        paths = [path for path in paths if _ending_format(path) in wanted]
        endings = ", ".join(ending for ending, format_ in ENDINGS.items() if format_ in wanted)
        problem = f"no file in this folder ends in {endings} (compressed or not)"
    else:
        problem = "no file matches this pattern"
    if not paths:
        raise BadInput(FIELD, source.location, problem, "check the path, or name the files by a pattern")
    return [_text_file(fs, path, source.format) for path in paths]


def _open(location: str) -> tuple[AbstractFileSystem, str]:
    for part in location.split("::"):
        where = urlsplit(part)
        if "://" in part and where.scheme in {"s3", "s3a"} and not where.netloc:
            raise BadInput(FIELD, location, "names no bucket", "use s3://bucket/path")
    return open_location(location, FIELD, "s3://bucket/path")


def _listing(fs: AbstractFileSystem, root: str) -> tuple[bool, list[str]]:
    """(whether `root` is a folder, paths of the files). Raises FileNotFoundError."""
    fs.invalidate_cache()
    try:
        info = fs.info(root)
    except FileNotFoundError:
        if not glob.has_magic(root):
            raise
        try:
            matches = fs.glob(root, detail=True)
        except ValueError as error:
            raise BadInput(FIELD, root, str(error), "correct the pattern") from error
        return False, _visible(path for path, found in matches.items() if found["type"] == "file")
    if info["type"] != "directory":
        return False, [root]
    return True, _visible(fs.find(root))


def _visible(paths: Iterable[str]) -> list[str]:
    return sorted(path for path in paths if not posixpath.basename(path).startswith("."))


def _text_file(fs: AbstractFileSystem, path: str, format_: str) -> TextFile:
    url = path if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path)
    known = _ending_format(path) if format_ == "auto" else format_
    if known is None:
        raise BadInput(
            "text.format",
            format_,
            f"the ending of {url} does not tell its format",
            f"set it to one of {', '.join(sorted(set(ENDINGS.values())))}",
        )
    return TextFile(fs, path, url, known, _compression(path))


def _ending_format(path: str) -> Format | None:
    if _compression(path) is not None:
        path = posixpath.splitext(path)[0]
    return ENDINGS.get(posixpath.splitext(path)[1].lower())


def _compression(path: str) -> str | None:
    return infer_compression(path) or _ARROWS.get(posixpath.splitext(path)[1].lower())
