"""Places in line: how many shards of a flow a cluster is given at a time. Its scheduler is the queue and the lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from flows.slots import Lease, Occupant, Slot, SlotPool

ANY_GPU = "any"
"""Which one it will be, the cluster decides."""


class Line:
    """Who of this flow stands in line: first come, first served, and each until it lets go."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.freed = asyncio.Event()
        self.turn = asyncio.Lock()


class Place(Lease):
    """Places that a shard holds in the line of its flow. Nothing outlives the flow, so nothing is locked."""

    def __init__(self, slots: Sequence[Slot], leave: Callable[[Place], None]) -> None:
        super().__init__(slots, descriptors=())
        self._leave = leave

    def release(self) -> None:
        if self._held:
            self._held = False
            self._leave(self)


class Places(SlotPool):
    """The places that a flow may take. Pools of one line share them, for GPUs and without."""

    def __init__(self, slots: Sequence[Slot], line: Line) -> None:
        super().__init__(slots)
        self._line = line

    async def lease(self, count: int = 1, occupant: Occupant | None = None) -> Lease:
        if count > len(self.slots):
            raise ValueError(f"{count} of {len(self.slots)} slots were asked for")
        async with self._line.turn:
            while (lease := self.try_lease(count, occupant)) is None:
                self._line.freed.clear()
                await self._line.freed.wait()
            return lease

    def try_lease(self, count: int = 1, occupant: Occupant | None = None) -> Lease | None:
        free = [slot for slot in self.slots if slot.name not in self._line.taken][:count]
        if len(free) < count:
            return None
        self._line.taken.update(slot.name for slot in free)
        return Place(free, self._free)

    def _free(self, place: Place) -> None:
        self._line.taken.difference_update(slot.name for slot in place.slots)
        self._line.freed.set()


def places(count: int, threads: int, line: Line, *, gpus: bool) -> Places:
    """``count`` places of ``line``, each with so many threads and, if asked for, a GPU."""
    return Places([Slot(f"place-{i}", ANY_GPU if gpus else None, threads) for i in range(count)], line)
