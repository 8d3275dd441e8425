"""How a result came to be: versions, host, device, memory. Of these, `processor` decides the last bits of a result."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import socket
import sys
import tomllib
from pathlib import Path

LIBRARIES = ("numpy", "pyarrow", "safetensors", "scipy", "statsmodels", "tokenizers", "torch", "transformers", "vllm")


def versions() -> dict[str, str]:
    """Versions of Python, of this product and of the libraries that are loaded."""
    loaded = {name: getattr(sys.modules[name], "__version__", "?") for name in LIBRARIES if name in sys.modules}
    return {"python": platform.python_version(), "tomograph": _own_version(), **loaded}


def device_name(device: str) -> str:
    """The model of the processor that ``device`` names."""
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None:
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def processor(device: str) -> dict[str, str]:
    """What decides the last bits of a result beside its spec, threads and batches: kind and name of the device, the
    instructions that torch uses of it, and torch's version."""
    torch = sys.modules.get("torch")
    kind = device.partition(":")[0]
    found = {"device": kind, "name": device_name(device)}
    if torch is None:
        return found
    if kind == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    else:
        capability = torch.backends.cpu.get_cpu_capability()
    return found | {"capability": capability, "torch": str(torch.__version__)}


def peak_memory() -> dict[str, int]:
    """Bytes at the peak: of this process, and on the GPU if it was used."""
    peak = {"process_bytes": _peak_resident()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["cuda_bytes"] = torch.cuda.max_memory_allocated()
        peak["cuda_reserved_bytes"] = torch.cuda.max_memory_reserved()
    return peak


def host() -> str:
    return socket.gethostname()


def image() -> str | None:
    """The container image that this process runs in, as "reference@sha256:...", where a launcher said so."""
    return os.environ.get("TOMOGRAPH_IMAGE") or None


def _peak_resident() -> int:
    try:  # Linux: unlike ru_maxrss, this does not start at the size of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _own_version() -> str:
    try:
        return importlib.metadata.version("tomograph")
    except importlib.metadata.PackageNotFoundError:  # run from its source folder
        project = Path(__file__).parents[1] / "pyproject.toml"
        return tomllib.loads(project.read_text())["project"]["version"] if project.exists() else "unknown"
