"""A machine that shows GPUs where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def write_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """A program of that name that prints what the real one would; ``lines`` are "index, UUID"."""
    rows = "\n".join(f"{line}, Imaginary GPU, 0 MiB, 81920 MiB" for line in lines.splitlines())
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{rows}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
