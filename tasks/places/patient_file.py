"""A file behind any fsspec filesystem, read with patience: a passing fault costs one read, not the file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeVar

from fsspec import AbstractFileSystem

from tasks.artifacts.retry import persist
from tasks.errors import BadInput, StoreError, TransientError

PATIENCE_SECONDS = 120.0
BLOCK_BYTES = 4 * 2**20
"""Asked for at once. A client's own default may be 50 MB, and often the first few suffice."""

T = TypeVar("T")


def persistently(
    action: Callable[[], T],
    url: str,
    field: str,
    missing: str = "there is no such file or folder",
    remedy: str = "check the path",
) -> T:
    """``action()``, again while faults pass. Raises TransientError, and BadInput of ``field`` for what no patience
    mends. ``missing`` and ``remedy``: what to say where nothing is."""
    try:
        return persist(action, url, PATIENCE_SECONDS)
    except FileNotFoundError as error:
        raise BadInput(field, url, missing, remedy) from error
    except StoreError as error:
        raise BadInput(field, url, error.problem, error.remedy) from error


class PatientFile(io.RawIOBase):
    """Unbuffered, for reading. Every failure is a BadInput or a TransientError.

    After a fault the file is opened again and read on from the same place.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, url: str, field: str) -> None:
        self._fs, self._path, self._url, self._field = fs, path, url, field
        self._file: Any = None
        self._at = 0
        self._size: int | None = persistently(lambda: fs.info(path), url, field)["size"]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._size is not None

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self._size is None:
            raise io.UnsupportedOperation(f"{self._url} has no known size")
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        data = persistently(lambda: self._read(len(buffer)), self._url, self._field)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, n: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._fs.open(self._path, "rb", block_size=BLOCK_BYTES)
            if self._file.tell() != self._at:
                self._file.seek(self._at)
            data = self._file.read(n)
            if not data and n and self._size is not None and self._at < self._size:
                raise TransientError(f"ended after {self._at} of {self._size} bytes")
        except Exception:
            self._drop()
            raise
        return data

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
