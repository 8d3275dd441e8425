"""Whether the flow process that started a shard still lives, asked by another process, perhaps in another container.

A process that runs shards holds a kernel lock on a file named after it in the runtime folder. The kernel frees the
lock when the process ends, whatever ended it, and the lock means the same in every container that shares the
folder, where process ids do not.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from functools import cache
from pathlib import Path

from flows.locks import lock, make_folder, runtime_folder

_FOLDER = "holders"
_LOGS = "logs"
_held: dict[Path, tuple[int, str, int]] = {}
"""By runtime folder: the process that locked a file there, its name, and the lock's descriptor."""


def holder() -> str:
    """A name for this process that no other process has, locked for as long as it lives."""
    folder = runtime_folder() / _FOLDER
    owner, name, _ = _held.get(folder, (0, "", -1))
    if owner != os.getpid():  # not yet, or in a fork
        name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        descriptor = lock(folder / f"{name}.lock")
        if descriptor is None:
            raise RuntimeError(f"{folder / name} is locked by another process")
        _held[folder] = (os.getpid(), name, descriptor)
    return name


def holder_lives(name: str) -> bool:
    """Whether the process that called itself ``name`` still runs. What a dead one left here is removed."""
    path = runtime_folder() / _FOLDER / f"{name}.lock"
    if not path.exists():
        return False
    descriptor = lock(path)
    if descriptor is None:
        return True
    with contextlib.suppress(FileNotFoundError, PermissionError):
        path.unlink()
    os.close(descriptor)
    return False


def log_file() -> Path:
    """Where this process keeps the log of what it starts; for as long as it lives, if it does not remove it."""
    path = runtime_folder() / _LOGS / f"{holder()}.log"
    make_folder(path.parent)
    return path


def remove_dead() -> None:
    """Remove the lock files and logs of processes that were killed."""
    for folder in (_FOLDER, _LOGS):
        for path in (runtime_folder() / folder).glob("*.*"):
            if not holder_lives(path.stem):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


@cache
def _domain(folder: Path) -> str:
    make_folder(folder)
    path = folder / "domain"
    mine = path.with_name(f"domain-{uuid.uuid4().hex}")
    mine.write_text(uuid.uuid4().hex)
    mine.chmod(0o644)
    with contextlib.suppress(FileExistsError):
        os.link(mine, path)  # the first one stays
    mine.unlink()
    return path.read_text()


def domain() -> str:
    """Identity of the runtime folder. Holders of another one can't be judged from here."""
    return _domain(runtime_folder())
