"""Real interpreters of environments that differ from the tests' own."""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path


def make_environment(folder: Path, **distributions: str) -> Path:
    """A virtual environment with the tests' own packages and the metadata of more: its interpreter."""
    venv.create(folder, symlinks=True)
    variables = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", variables))
    (site / "tests.pth").write_text(sysconfig.get_path("purelib"))
    for name, version in distributions.items():
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder / "bin" / "python"
