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


def lock(path: Path) -> int | None:
    """Lock ``path`` and return its descriptor, or None when another process holds it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
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
