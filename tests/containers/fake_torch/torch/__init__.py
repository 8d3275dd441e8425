"""Stands for torch in a container with imaginary GPUs: each is a file in /dev/imaginary-gpus, named by its UUID."""

from __future__ import annotations

import os
from types import SimpleNamespace

__version__ = "imaginary"
FOLDER = "/dev/imaginary-gpus"


def _devices() -> list[str]:
    return sorted(os.listdir(FOLDER)) if os.path.isdir(FOLDER) else []


cuda = SimpleNamespace(
    device_count=lambda: len(_devices()),
    get_device_properties=lambda index: SimpleNamespace(uuid=_devices()[index].removeprefix("GPU-")),
    get_device_name=lambda device: "Imaginary GPU",
    get_device_capability=lambda device: (0, 0),
    is_available=lambda: bool(_devices()),
    is_initialized=lambda: False,
)
