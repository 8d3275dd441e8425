"""How a store lists and writes, for any filesystem of fsspec; ``local`` and ``s3`` know better ways for theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fsspec import AbstractFileSystem

Buffer = bytes | bytearray | memoryview
Persist = Callable[[Callable[[], Any]], Any]
"""Calls its argument, again and again while passing faults hinder it."""


class Backend:
    """Whole-object writes and listings. Paths are the filesystem's own."""

    def __init__(self, fs: AbstractFileSystem) -> None:
        self.fs = fs

    def write(self, path: str, buffers: Sequence[Buffer], persist: Persist) -> None:
        """Write ``buffers``, one after the other, as one object: readers see the old one or the new one."""
        persist(lambda: self.fs.pipe_file(path, b"".join(buffers)))

    def sizes(self, folder: str, persist: Persist) -> dict[str, int]:
        """Bytes of every object below a folder."""
        found = persist(lambda: self.fs.find(folder, detail=True))
        return {path: info["size"] for path, info in found.items()}

    def remove_stale(self, folder: str, persist: Persist) -> None:
        """Remove what killed writers left below a folder."""
