"""Folders in the product's cache that live as long as what they were made for, and no longer."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.places.cache import cache_root


class Scratch:
    """An empty folder, removed when the `with` block ends unless it was given to an object: then when that goes.

    It is gone in any case when the process ends, and what a killed process left behind goes when the next is made.
    """

    def __init__(self, kind: str) -> None:
        root = cache_root() / kind
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        self.folder = Path(tempfile.mkdtemp(dir=root))
        self._lock = FileLock(self.folder.with_suffix(".lock"))
        self._lock.acquire()  # the system holds it until this process ends, however it ends
        self._remove = weakref.finalize(self, _remove, self.folder, self._lock)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *exception: object) -> None:
        self._remove()

    def give_to(self, owner: object) -> None:
        if self._remove.detach() is not None:
            weakref.finalize(owner, _remove, self.folder, self._lock)


def _sweep(root: Path) -> None:
    for path in root.glob("*.lock"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _remove(path.with_suffix(""), lock)


def _remove(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
