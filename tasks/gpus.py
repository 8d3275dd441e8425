"""The GPUs that a shard was promised, checked against those it sees.

A container runtime may accept a request for a GPU and give none, or all of them. A launcher that leases GPUs names
them in ``TOMOGRAPH_GPUS``: "GPU-<uuid>,GPU-<uuid>", or "count:2" where it can't know which ones they will be.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from tasks.errors import BadInput

PROMISE = "TOMOGRAPH_GPUS"
COUNT = "count:"
UUID = "GPU-"


def check_device(device: str, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a GPU that is not there, and GPUs other than those that were promised.

    Raises:
        BadInput: torch does not see the device, or not exactly the promised ones.
    """
    if not device.startswith("cuda"):
        return
    import torch

    index = int(device.partition(":")[2] or 0)
    count = torch.cuda.device_count()
    seen = f"torch {torch.__version__} sees {count} GPU{'' if count == 1 else 's'}"
    if count <= index:
        remedy = "check the driver, CUDA_VISIBLE_DEVICES and the container's GPU request, or use --device cpu"
        raise BadInput("device", device, seen, remedy)
    if promise := environ.get(PROMISE):
        uuids = [UUID + str(torch.cuda.get_device_properties(i).uuid).removeprefix(UUID) for i in range(count)]
        if not _kept(promise, uuids):
            problem = f"{seen} ({', '.join(uuids)}), and {PROMISE} promises {promise}"
            raise BadInput("device", device, problem, "check the container runtime: it must give just these GPUs")


def _kept(promise: str, seen: Sequence[str]) -> bool:
    """Parts of a GPU (MIG) and names that are no UUID are counted only."""
    if promise.startswith(COUNT):
        return len(seen) == int(promise.removeprefix(COUNT))
    promised = promise.split(",")
    if not all(name.startswith(UUID) for name in promised):
        return len(seen) == len(promised)
    return sorted(seen) == sorted(promised)
