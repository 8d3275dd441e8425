"""The bytes of a file: from any filesystem, decompressed, counted and hashed on the way."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tasks.errors import BadInput
from tasks.places.opening import open_location
from tasks.places.patient_file import PatientFile, persistently

READ_BYTES = 2**20
SAY_BYTES = 100 * 10**6
"""How often the work is said to go on."""
GZIP_MAGIC = b"\x1f\x8b"
_GZIP = zlib.MAX_WBITS | 16


class Source:
    """The text of a file that may be compressed by gzip. A compressed file that breaks off just ends."""

    def __init__(self, file: io.RawIOBase, location: str, say: Callable[[str], None], size: int | None) -> None:
        self.location = location
        self._say, self._size = say, size
        self.stored_bytes = 0
        self.text_bytes = 0
        self.broken: str | None = None
        """What is wrong with the compressed file, if it broke off."""
        self._file, self._hash = file, hashlib.sha256()
        start = self._stored()
        while 0 < len(start) < len(GZIP_MAGIC) and (more := self._stored()):
            start += more
        self._pieces = self._gunzip(start) if start.startswith(GZIP_MAGIC) else self._plain(start)

    @property
    def sha256(self) -> str:
        """Of the stored file, once it is read to its end."""
        return self._hash.hexdigest()

    def next_piece(self) -> bytes:
        """About a megabyte; nothing at the end."""
        piece = next(self._pieces, b"")
        before, self.text_bytes = self.text_bytes, self.text_bytes + len(piece)
        if before // SAY_BYTES < self.text_bytes // SAY_BYTES:
            share = f" ({self.stored_bytes / self._size:.0%} of the file)" if self._size else ""
            self._say(f"{self.location}: {self.text_bytes / 1e6:.0f} MB{share}")
        return piece

    def drain(self) -> None:
        """Read on to the end of the stored file, for its size and digest."""
        while self._stored():
            pass

    def _stored(self) -> bytes:
        data = self._file.read(READ_BYTES) or b""
        self.stored_bytes += len(data)
        self._hash.update(data)
        return data

    def _plain(self, data: bytes) -> Iterator[bytes]:
        while data:
            yield data
            data = self._stored()

    def _gunzip(self, data: bytes) -> Iterator[bytes]:
        """Decompressed in steps of bounded size. A file of several members is their contents, one after the other."""
        member = zlib.decompressobj(_GZIP)
        while data or (data := self._stored()):
            if member.eof:
                data = data.lstrip(b"\0")  # padding is no member
                if not data:
                    continue
                member = zlib.decompressobj(_GZIP)
            try:
                piece = member.decompress(data, READ_BYTES)
            except zlib.error as error:
                self.broken = f"the compressed data is damaged ({error})"
                return
            data = member.unused_data if member.eof else member.unconsumed_tail
            if piece:
                yield piece
        if not member.eof:
            self.broken = "the compressed data ends too early"


@contextmanager
def open_source(location: str, field: str, say: Callable[[str], None]) -> Iterator[Source]:
    """Open a local path or any URL that fsspec speaks. `say` is told now and then how far it was read.

    Raises:
        BadInput: with this `field`: there is no such file, or it can't be read.
        TransientError: a fault of the store did not pass.
    """
    with _open(location, field) as file:
        size = None
        if file.seekable():
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
        yield Source(file, location, say, size)


def _open(location: str, field: str) -> PatientFile:
    fs, path = open_location(location, field, "s3://bucket/path")
    if persistently(lambda: fs.isdir(path), location, field):
        raise BadInput(field, location, "is a folder", "name the file of results in it")
    return PatientFile(fs, path, location, field)
