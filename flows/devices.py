"""The GPUs and cores of this host that this process may use."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

VISIBLE = "CUDA_VISIBLE_DEVICES"
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-ctrl")
"""What a host or container with NVIDIA's driver has: on Linux, in Windows' subsystem for it, on a Jetson."""


@dataclass(frozen=True)
class Gpu:
    """A GPU of this host, in the words of nvidia-smi; ``memory`` is "used / total"."""

    index: str
    uuid: str
    name: str = ""
    memory: str = ""


def installed_gpus() -> list[Gpu]:
    """Every GPU that nvidia-smi shows; empty where there is no such program."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.used,memory.total", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = ([cell.strip() for cell in line.split(",")] for line in output.splitlines() if line.strip())
    return [Gpu(index, uuid, name, f"{used} / {total}") for index, uuid, name, used, total in rows]


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[tuple[str, str]]:
    """(name for ``CUDA_VISIBLE_DEVICES``, identity on this host) of each GPU that this process may use.

    The identity is the UUID, so that a flow that sees a device as ``3`` and one that sees it by its UUID
    lock the same file. As in CUDA, a name that is not valid ends the list.
    """
    installed = [(gpu.index, gpu.uuid) for gpu in installed_gpus()]
    visible = environ.get(VISIBLE)
    if visible is None:
        return installed
    gpus: list[tuple[str, str]] = []
    for name in filter(None, map(str.strip, visible.split(","))):
        if name.startswith("-"):
            break
        uuids = (uuid for index, uuid in installed if name == index or uuid.startswith(name))
        gpus.append((name, next(uuids, name.replace("/", "_"))))
    return gpus


def unknown_gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Names in ``CUDA_VISIBLE_DEVICES`` that can't be GPUs of this host; MIG devices are not looked up."""
    visible = visible_gpus(environ) if environ.get(VISIBLE) else []
    known = {gpu.uuid for gpu in installed_gpus()}
    if not known and any(map(os.path.exists, DRIVERS)):
        return []  # a container may have GPUs and no nvidia-smi
    return [name for name, uuid in visible if uuid not in known and not name.startswith("MIG-")]


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
