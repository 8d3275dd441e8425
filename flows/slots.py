"""Slots of this machine: how many shards may run at once, across every flow on the host.

A slot is a file in the runtime folder and a lease of it is a kernel lock (``flock``) on that file. The child
that runs in the slot inherits the locked descriptor, so the slot is free exactly when the flow has let go of
it *and* the child is gone, whatever killed either of them. A shard that wants several GPUs leases several slots.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
        """As a shard's ``--device``: the GPUs that it sees, or the CPU."""
        return "cpu" if self.gpu is None else "cuda"


class Lease:
    """Slots held by this process, and by each child that inherits ``filenos()``."""

    def __init__(self, slots: Sequence[Slot], descriptors: Sequence[int]) -> None:
        self.slots = tuple(slots)
        self._descriptors = tuple(descriptors)
        self._held = True

    @property
    def name(self) -> str:
        return " and ".join(slot.name for slot in self.slots)

    @property
    def device(self) -> str:
        return self.slots[0].device

    @property
    def gpus(self) -> str:
        """``CUDA_VISIBLE_DEVICES`` for what runs here; empty on the CPU."""
        return ",".join(slot.gpu for slot in self.slots if slot.gpu is not None)

    @property
    def threads(self) -> int:
        return sum(slot.threads for slot in self.slots)

    def filenos(self) -> tuple[int, ...]:
        if not self._held:
            raise ValueError(f"the lease of {self.name} was released")
        return self._descriptors

    def release(self) -> None:
        """Let go. Closes and does not unlock: an unlock would also take the slots from a living child."""
        if self._held:
            _close(self._descriptors)
            self._held = False

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class SlotPool:
    """The slots that a flow may use.

    Who waits for slots stands at the head of a queue at each slot of the pool (its turnstile) until all that are
    wanted are free at once. Nobody takes a slot past a turnstile, so whoever wants several is not overtaken for ever
    by those who want one; who has just freed a slot goes to the end, so flows that share a machine take turns; and
    flows with different slots don't wait for each other. Turnstiles are entered in one order everywhere, and nobody
    in front of one holds what others want, so no two flows wait for each other for good.
    """

    def __init__(self, slots: Sequence[Slot], folder: Path | None = None) -> None:
        self.slots = tuple(slots)
        self._folder = folder or runtime_folder()

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def device(self) -> str:
        return self.slots[0].device

    async def lease(self, count: int = 1) -> Lease:
        """Wait until ``count`` slots are free at once, and take them.

        Raises:
            ValueError: the pool has fewer.
        """
        if count > len(self.slots):
            raise ValueError(f"{count} of {len(self.slots)} slots were asked for")
        turns: list[int] = []
        try:
            for name in sorted(slot.name for slot in self.slots):
                turns.append(await _poll(partial(_lock, self._folder / f"{name}.turnstile")))
            return await _poll(partial(self.try_lease, count))
        finally:
            _close(turns)

    def try_lease(self, count: int = 1) -> Lease | None:
        """Lease ``count`` slots that are free now, or none of them."""
        taken: list[tuple[Slot, int]] = []
        for slot in self.slots:
            descriptor = _lock(self._folder / f"{slot.name}.lock")
            if descriptor is not None:
                taken.append((slot, descriptor))
                if len(taken) == count:
                    return Lease(*zip(*taken, strict=True))
        _close(descriptor for _, descriptor in taken)
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


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


async def _poll(attempt: Callable[[], T | None]) -> T:
    wait, longest = POLL_SECONDS
    while (result := attempt()) is None:
        await asyncio.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, longest)
    return result
