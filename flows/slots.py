"""Slots of this machine: how many shards may run at once, across every flow on the host.

A slot is a file in the runtime folder and a lease of it is a kernel lock (``flock``) on that file. The child
that runs in the slot inherits the locked descriptor, so the slot is free exactly when the flow has let go of
it *and* the child is gone, whatever killed either of them. A shard that wants several GPUs leases several slots.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from flows.devices import VISIBLE, available_cores, unknown_gpus, visible_gpus
from flows.locks import lock, locked, runtime_folder
from tasks.errors import BadInput

T = TypeVar("T")

CORES_PER_CPU_SLOT = 2
GPU_PREFIX = "gpu-"
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

    @property
    def uuid(self) -> str | None:
        """Identity of the GPU on this host, None on the CPU."""
        return None if self.gpu is None else self.name.removeprefix(GPU_PREFIX)


@dataclass(frozen=True)
class Occupant:
    """What a slot is leased for, for people to see. ``since`` is in seconds since the epoch."""

    flow: str
    shard: str
    since: float


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
    def uuids(self) -> tuple[str, ...]:
        """The GPUs by their identity on this host; none on the CPU."""
        return tuple(slot.uuid for slot in self.slots if slot.uuid is not None)

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
    flows with different slots don't wait for each other. Who stands behind another at one turnstile takes what is free
    behind those at which nobody stands. Turnstiles are entered in one order everywhere, and nobody in front of one
    holds what others want, so no two flows wait for each other for good.
    """

    def __init__(self, slots: Sequence[Slot], folder: Path | None = None) -> None:
        self.slots = tuple(slots)
        self._folder = folder or runtime_folder()

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def device(self) -> str:
        return self.slots[0].device

    async def lease(self, count: int = 1, occupant: Occupant | None = None) -> Lease:
        """Wait until ``count`` slots are free at once, and take them for ``occupant``.

        Raises:
            ValueError: the pool has fewer.
        """
        if count > len(self.slots):
            raise ValueError(f"{count} of {len(self.slots)} slots were asked for")
        turns: dict[str, int] = {}
        try:
            for name in sorted(slot.name for slot in self.slots):
                got = await _poll(partial(self._next_turn, name, turns, count, occupant))
                if isinstance(got, Lease):
                    return got
                turns[name] = got
            return await _poll(partial(self.try_lease, count, occupant))
        finally:
            _close(turns.values())

    def try_lease(self, count: int = 1, occupant: Occupant | None = None) -> Lease | None:
        """Lease ``count`` slots that are free now, or none of them."""
        return self._lease_of(self.slots, count, occupant)

    def _next_turn(
        self, name: str, turns: Mapping[str, int], count: int, occupant: Occupant | None
    ) -> int | Lease | None:
        """The turnstile ``name``; or, while another stands there, a lease of slots at which nobody does."""
        if (turn := self._turnstile(name)) is not None:
            return turn
        borrowed = {slot.name: self._turnstile(slot.name) for slot in self.slots if slot.name not in turns}
        try:
            passable = [slot for slot in self.slots if slot.name in turns or borrowed[slot.name] is not None]
            return self._lease_of(passable, count, occupant)
        finally:
            _close(turn for turn in borrowed.values() if turn is not None)

    def _turnstile(self, name: str) -> int | None:
        return lock(self._folder / f"{name}.turnstile")

    def _lease_of(self, slots: Sequence[Slot], count: int, occupant: Occupant | None) -> Lease | None:
        taken: list[tuple[Slot, int]] = []
        for slot in slots:
            descriptor = lock(slot_file(self._folder, slot.name))
            if descriptor is not None:
                taken.append((slot, descriptor))
                if len(taken) == count:
                    for _, held in taken:
                        _write_occupant(held, occupant)
                    return Lease(*zip(*taken, strict=True))
        _close(descriptor for _, descriptor in taken)
        return None


def slot_file(folder: Path, name: str) -> Path:
    """The file whose lock is the lease of a slot."""
    return folder / f"{name}.lock"


def occupant_of(path: Path) -> Occupant | None:
    """Who holds the slot of this file, if anyone does."""
    try:
        with path.open() as file:
            if not locked(file.fileno()):
                return None
            return Occupant(**json.loads(file.read() or "{}"))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # just leased, or by a process that says nothing
        return Occupant("", "", 0.0)


def _write_occupant(descriptor: int, occupant: Occupant | None) -> None:
    text = json.dumps(asdict(occupant)) if occupant else ""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def cpu_slots(count: int | None = None, threads: int | None = None) -> tuple[Slot, ...]:
    """``count`` slots on the CPU (default: one for two cores) that share the cores evenly."""
    cores = available_cores()
    count = count or max(1, cores // CORES_PER_CPU_SLOT)
    return tuple(Slot(f"cpu-{i}", None, threads or max(1, cores // count)) for i in range(count))


def gpu_slots(count: int | None = None, threads: int | None = None) -> tuple[Slot, ...]:
    """One slot for each visible GPU, at most ``count``; empty on a machine without GPUs."""
    gpus = visible_gpus()
    share = max(1, available_cores() // max(1, len(gpus)))
    return tuple(Slot(f"{GPU_PREFIX}{uuid}", name, threads or share) for name, uuid in gpus[:count])


def host_slots(device: str, count: int | None, threads: int | None) -> SlotPool:
    """The slots of this host for shards on ``device`` ("cpu", "cuda" or "auto"), at most ``count`` of them.

    Raises:
        BadInput: there is no such device here, or a GPU that was named.
    """
    if device in ("auto", "cuda") and (unknown := unknown_gpus()):
        problem = f"nvidia-smi shows no GPU {', '.join(unknown)} on this machine"
        raise BadInput(VISIBLE, os.environ[VISIBLE], problem, "correct the variable, or set execution.device to 'cpu'")
    gpus = gpu_slots(count, threads) if device in ("auto", "cuda") else ()
    if device == "cuda" and not gpus:
        problem = "this machine shows no GPU (CUDA_VISIBLE_DEVICES, nvidia-smi)"
        raise BadInput("execution.device", device, problem, "use 'auto' or 'cpu'")
    return SlotPool(gpus or cpu_slots(count, threads))


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


async def _poll(attempt: Callable[[], T | None]) -> T:
    wait, longest = POLL_SECONDS
    while (result := attempt()) is None:
        await asyncio.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, longest)
    return result
