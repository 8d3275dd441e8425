"""Slots of this machine: how many shards may run at once, across every flow on the host.

A slot is a file in the runtime folder and a lease of it is a kernel lock (``flock``) on that file. The child
that runs in the slot inherits the locked descriptor, so the slot is free exactly when the flow has let go of
it *and* the child is gone, whatever killed either of them.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CORES_PER_CPU_SLOT = 2
POLL_SECONDS = (0.005, 0.1)  # the wait doubles from the first to the second


@dataclass(frozen=True)
class Slot:
    """One place where a shard can run.

    ``name`` identifies the place on this host (a GPU by its UUID, where that is known) and ``gpu`` is the
    value of ``CUDA_VISIBLE_DEVICES`` that selects it, None on the CPU. ``threads`` is its share of the cores.
    """

    name: str
    gpu: str | None
    threads: int

    @property
    def device(self) -> str:
        """As a shard's ``--device``: the one GPU that it sees, or the CPU."""
        return "cpu" if self.gpu is None else "cuda"


class Lease:
    """A slot held by this process, and by each child that inherits ``fileno()``."""

    def __init__(self, slot: Slot, descriptor: int) -> None:
        self.slot = slot
        self._descriptor: int | None = descriptor

    def fileno(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"the lease of slot {self.slot.name} was released")
        return self._descriptor

    def release(self) -> None:
        """Let go. Closes and does not unlock: an unlock would also take the slot from a living child."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class SlotPool:
    """The slots that a flow may use.

    A flow that waits for a slot stands in a queue of one (the turnstile), and a flow that has just freed a
    slot goes to the end of it, so flows that share a machine take turns.
    """

    def __init__(self, slots: Sequence[Slot], folder: Path | None = None) -> None:
        self.slots = tuple(slots)
        self._folder = folder or runtime_folder()
        self._turnstile = self._folder / f"{self.slots[0].name.partition('-')[0]}.turnstile"

    def __len__(self) -> int:
        return len(self.slots)

    async def lease(self) -> Lease:
        """Wait for a free slot."""
        turn = await _poll(lambda: _lock(self._turnstile))
        try:
            return await _poll(self.try_lease)
        finally:
            os.close(turn)

    def try_lease(self) -> Lease | None:
        """Lease a slot that is free now, or None."""
        for slot in self.slots:
            descriptor = _lock(self._folder / f"{slot.name}.lock")
            if descriptor is not None:
                return Lease(slot, descriptor)
        return None


def cpu_slots(count: int | None = None, threads: int | None = None) -> tuple[Slot, ...]:
    """``count`` slots on the CPU (default: one for two cores) that share the cores evenly."""
    cores = available_cores()
    count = count or max(1, cores // CORES_PER_CPU_SLOT)
    return tuple(Slot(f"cpu-{i}", None, threads or max(1, cores // count)) for i in range(count))


def gpu_slots(count: int | None = None, threads: int | None = None) -> tuple[Slot, ...]:
    """One slot for each visible GPU, at most ``count``; empty on a machine without GPUs."""
    gpus = visible_gpus()
    share = max(1, available_cores() // max(1, len(gpus)))
    return tuple(Slot(f"gpu-{uuid}", name, threads or share) for name, uuid in gpus[:count])


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[tuple[str, str]]:
    """(name for ``CUDA_VISIBLE_DEVICES``, identity on this host) of each GPU that this process may use.

    The identity is the UUID, so that a flow that sees a device as ``3`` and one that sees it by its UUID
    lock the same file. As in CUDA, a name that is not valid ends the list.
    """
    installed = _nvidia_smi()
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return installed
    gpus: list[tuple[str, str]] = []
    for name in filter(None, map(str.strip, visible.split(","))):
        if name.startswith("-"):
            break
        uuids = (uuid for index, uuid in installed if name == index or uuid.startswith(name))
        gpus.append((name, next(uuids, name.replace("/", "_"))))
    return gpus


def runtime_folder() -> Path:
    """Folder of the locks: ``TOMOGRAPH_RUNTIME_DIR``, or one for each user in the temporary folder."""
    chosen = os.environ.get("TOMOGRAPH_RUNTIME_DIR")
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"tomograph-{os.getuid()}"


def _nvidia_smi() -> list[tuple[str, str]]:
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.split(",") for line in output.splitlines() if line.strip())
    return [(index.strip(), uuid.strip()) for index, uuid in rows]


def _lock(path: Path) -> int | None:
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


async def _poll(attempt: Callable[[], T | None]) -> T:
    wait, longest = POLL_SECONDS
    while (result := attempt()) is None:
        await asyncio.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, longest)
    return result
