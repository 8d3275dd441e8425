"""Kernel locks on files of the runtime folder: free exactly when no process has the locked descriptor open."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path


def runtime_folder() -> Path:
    """Folder of the locks: ``TOMOGRAPH_RUNTIME_DIR``, or one for each user in the temporary folder."""
    chosen = os.environ.get("TOMOGRAPH_RUNTIME_DIR")
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"tomograph-{os.getuid()}"


def make_folder(path: Path) -> None:
    """Make a folder inside the runtime folder, and that one: for whom the one above is, else for this user alone."""
    if not path.exists():
        inside = path != runtime_folder() and path.is_relative_to(runtime_folder())
        if inside:
            make_folder(path.parent)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if inside and (shared := path.parent.stat().st_mode & 0o077):
            path.chmod(0o700 | shared)


def lock(path: Path) -> int | None:
    """Lock ``path`` and return its descriptor, or None when another process holds it.

    In a folder that several users may write to, so is the file.
    """
    make_folder(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        shared = path.parent.stat().st_mode & 0o066
        state = os.fstat(descriptor)
        if state.st_uid == os.getuid() and state.st_mode & 0o066 != shared:
            os.fchmod(descriptor, 0o600 | shared)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.utime(descriptor)  # cleaners of temporary folders go by age
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):  # held; or deleted between open and lock
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def locked(descriptor: int) -> bool:
    """Whether another process holds the lock of this open file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
