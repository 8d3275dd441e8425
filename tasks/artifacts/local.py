"""Files on this machine, written so that a kill or a power cut leaves the old file or the new one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts.backend import Backend, Buffer, Persist

TEMPORARY_PREFIX = ".tmp-"


class LocalBackend(Backend):
    """A file is written beside its place, synced and renamed into it.

    A writer holds a lock on its temporary file for as long as it lives, so that the files of killed writers
    can be told from those being written.
    """

    def write(self, path: str, buffers: Sequence[Buffer], persist: Persist) -> None:
        persist(lambda: _write(Path(path), buffers))

    def sizes(self, folder: str, persist: Persist) -> dict[str, int]:
        return persist(lambda: _sizes(folder))

    def remove_stale(self, folder: str, persist: Persist) -> None:
        for temporary in Path(folder).rglob(f"{TEMPORARY_PREFIX}*"):
            with contextlib.suppress(OSError), temporary.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                temporary.unlink()


def _write(path: Path, buffers: Sequence[Buffer]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, descriptor = _create_locked(path.parent)
    try:
        try:
            for buffer in buffers:
                _write_all(descriptor, memoryview(buffer).cast("B"))
            os.fsync(descriptor)
            os.replace(temporary, path)
        finally:
            os.close(descriptor)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sizes(folder: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                sizes |= _sizes(entry.path)
            elif not entry.name.startswith(TEMPORARY_PREFIX):
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    sizes[entry.path] = entry.stat().st_size
    return sizes


def _create_locked(folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # a filesystem without locks: its temporary files are never stale
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # taken for stale between its creation and its lock


def _write_all(descriptor: int, data: memoryview) -> None:
    while data.nbytes:
        data = data[os.write(descriptor, data) :]


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder last through a power cut, where the filesystem can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
