"""Files of text: found by a path, folder or pattern on any filesystem that fsspec speaks, and opened.

Credentials follow each ecosystem's own conventions, as the store's do, and never enter a URL.
"""

from __future__ import annotations

import glob
import gzip
import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from lzma import LZMADecompressor, LZMAError
from typing import BinaryIO, Literal

import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from tasks.errors import BadInput, TransientError
from tasks.places.opening import open_location
from tasks.places.patient_file import PatientFile, persistently
from tasks.places.patterns import matching, split_pattern
from tasks.text.spec import TextSource

FIELD = "text.location"

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

_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".xz": "xz", ".zip": "zip"}
_DAMAGE = (
    EOFError,
    OSError,
    zlib.error,
    LZMAError,
    zipfile.BadZipFile,
    pa.ArrowException,
)
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
        with io.BufferedReader(PatientFile(self.fs, self.path, self.url, FIELD), BUFFER_BYTES) as stream:
            yield stream

    def parts(self) -> Iterator[tuple[str, AbstractContextManager[BinaryIO]]]:
        """Its content, decompressed, with a name for messages: all members of an archive in their order, else one.

        Reading raises BadInput when it is no whole file of its compression. A member ends before the next is taken.
        """
        if self.compression != "zip":
            yield self.url, self._decompressed()
            return
        with self.raw() as raw:
            with self._damage_told(self.url):
                archive = zipfile.ZipFile(raw)
            for member in filter(_is_content, archive.infolist()):
                where = f"{self.url}, {member.filename}"
                yield where, self._member(archive, member, where)

    @contextmanager
    def _decompressed(self) -> Iterator[BinaryIO]:
        with self.raw() as raw, self._damage_told(self.url), closing(_decompressing(raw, self.compression)) as stream:
            yield stream

    @contextmanager
    def _member(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> Iterator[BinaryIO]:
        with self._damage_told(where):
            try:
                stream = archive.open(member)
            except RuntimeError as error:  # it needs a password, or a decompressor that Python does not have
                raise zipfile.BadZipFile(str(error)) from error
            with stream:
                yield stream

    @contextmanager
    def _damage_told(self, where: str) -> Iterator[None]:
        try:
            yield
        except (BadInput, TransientError):
            raise
        except _DAMAGE as error:
            remedy = f"check that it is a whole {self.compression} file"
            raise BadInput(FIELD, where, f"cannot be decompressed ({error})", remedy) from error


def _is_content(member: zipfile.ZipInfo) -> bool:
    """Neither a folder nor what file managers leave beside the files."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in member.filename.split("/"))
    return not (member.is_dir() or hidden)


def _decompressing(raw: BinaryIO, compression: str | None) -> BinaryIO:
    """All that was compressed, in one part or in several. Damage to any of them raises one of `_DAMAGE`.

    pyarrow's reader, where Python's own takes a part that it can't read for the file's end.
    """
    match compression:
        case None:
            return raw
        case "gzip":
            return gzip.GzipFile(fileobj=raw)
        case "xz":
            return io.BufferedReader(_Xz(raw), BUFFER_BYTES)
        case _:
            return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), compression))


class _Xz(io.RawIOBase):
    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._part = LZMADecompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while True:
            data = b""
            if self._part.eof:
                data = self._part.unused_data or self._raw.read(BUFFER_BYTES)
                if not data:
                    return 0
                self._part = LZMADecompressor()
            elif self._part.needs_input:
                data = self._raw.read(BUFFER_BYTES)
                if not data:
                    raise EOFError("it ends within a part")
            if data := self._part.decompress(data, len(buffer)):
                buffer[: len(data)] = data
                return len(data)


def find(source: TextSource) -> list[TextFile]:
    """The files that `source` names, sorted by path; of a folder, and all below it, those with known endings.

    Raises BadInput when there are none, or an ending that `auto` can't tell the format by.
    """
    fs, root = open_location(source.location, FIELD)
    is_folder, paths = persistently(lambda: _listing(fs, root), source.location, FIELD)
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


def _listing(fs: AbstractFileSystem, root: str) -> tuple[bool, list[str]]:
    """(whether `root` is a folder, paths of the files). Raises FileNotFoundError."""
    fs.invalidate_cache()
    try:
        info = fs.info(root)
    except FileNotFoundError:
        if not glob.has_magic(root):
            raise
        try:
            folder, pattern = split_pattern(fs, root)
            return False, _visible(info["name"] for info in matching(fs, folder, pattern).values())
        except ValueError as error:
            raise BadInput(FIELD, root, str(error), "correct the pattern") from error
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
    return _COMPRESSIONS.get(posixpath.splitext(path)[1].lower())
