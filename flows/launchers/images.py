"""Which container image holds an environment."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def variable(environment: str) -> str:
    """Name of the variable that names the image of an environment: TOMOGRAPH_TORCH_IMAGE."""
    return f"TOMOGRAPH_{environment.upper()}_IMAGE"


def image_of(environment: str, device: str, chosen: Mapping[str, str]) -> str:
    """Reference of the image for shards on ``device`` ("cpu" or "cuda").

    ``chosen`` wins over the variable, which wins over what `make images` builds.
    """
    build = "cpu" if device == "cpu" else "cuda"
    default = f"tomograph-{environment}:{version()}-{build}"
    return chosen.get(environment) or os.environ.get(variable(environment)) or default


@cache
def version() -> str:
    """The release of this code, as in the names of its images."""
    if PROJECT.exists():
        return tomllib.loads(PROJECT.read_text())["project"]["version"]
    return metadata.version("tomograph")
