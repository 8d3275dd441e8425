"""How much memory is free, telling a lack of it from other errors, and halving batches where it runs out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """True for an accelerator's out-of-memory error and for the CPU allocator's, which is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)


class Halving:
    """A batch size that is halved whenever memory runs out, and stays so.

    on_halved: called with how many items did not fit together.
    """

    def __init__(self, size: int, on_halved: Callable[[int], None] = lambda n: None) -> None:
        self.size = size
        self._on_halved = on_halved

    def over(
        self, items: Sequence[Item], run: Callable[[Sequence[Item]], Result]
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        """(batch, run(batch)) until all items are done, in their order.

        Raises what `run` raises, and its out-of-memory error where one item is too many.
        """
        done = 0
        while done < len(items):
            batch = items[done : done + self.size]
            try:
                result = run(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(batch) == 1:
                    raise
                self.size = len(batch) // 2
                self._on_halved(len(batch))
                continue
            done += len(batch)
            yield batch, result
            del result  # no memory is held for it while the next batch runs


def free_bytes(device: torch.device | str) -> int:
    """Bytes that this process can still have on a device.

    CUDA: what the driver has free and what torch's allocator holds unused. Elsewhere: what the machine has available,
    and no more than the limits of this process's control groups leave.
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([machine_bytes(), *cgroup_bytes()])


def machine_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Main memory that is available; the whole of it where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cgroup_bytes(root: Path = Path("/")) -> list[int]:
    """What each limited control group of this process still allows: its own one and those around it.

    Files that are cached and not in use do not count, since the system drops them first.
    """
    left = []
    for folder, limit, usage, inactive in _memory_groups(root):
        try:
            most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most.isdecimal():  # version 2 writes "max" where there is no limit, version 1 a number beyond all memory
            left.append(max(0, int(most) - used + int(stat.get(inactive, 0))))
    return left


def _memory_groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """(folder, names of its limit, usage and inactive files) of this process's groups, of both versions.

    In a container the path may lead nowhere, and the container's own group is the top of what is mounted.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.strip("/")
        while True:
            yield folder, *names
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent
