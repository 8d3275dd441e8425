"""Fields of a dictionary's configuration, of the type that they should have; BadInput for any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from tasks.errors import BadInput
from tasks.sae.locate import FIELD

Config = Mapping[str, Any]

MOST = 2**31
"""No dimension, and no number of features, is as large."""


def need(config: Config, key: str, path: Path) -> Any:
    """config[key]; raises BadInput when it is missing or null."""
    if config.get(key) is None:
        raise BadInput(FIELD, str(path), f"has no {key}", "check saes.kind: the file is not of this format")
    return config[key]


def word(config: Config, key: str, path: Path, default: str | None = None) -> str:
    value = _value(config, key, path, default)
    return value if isinstance(value, str) else _refuse(key, value, path, "a text")


def flag(config: Config, key: str, path: Path, default: bool | None = None) -> bool:
    value = _value(config, key, path, default)
    return value if isinstance(value, bool) else _refuse(key, value, path, "true or false")


def number(config: Config, key: str, path: Path, default: float | None = None) -> float:
    """Finite, also as float32."""
    value = _value(config, key, path, default)
    largest = torch.finfo(torch.float32).max
    if isinstance(value, bool) or not isinstance(value, int | float) or not -largest <= value <= largest:
        _refuse(key, value, path, "a number that float32 holds")
    return float(value)


def positive(config: Config, key: str, path: Path) -> float:
    value = number(config, key, path)
    return value if value > 0 else _refuse(key, value, path, "a number above 0")


def whole(config: Config, key: str, path: Path, default: int | None = None) -> int:
    """A count or size, from 1."""
    value = number(config, key, path, default)
    return int(value) if value.is_integer() and 0 < value < MOST else _refuse(key, value, path, "a whole number from 1")


def section(config: Config, key: str, path: Path, default: Config | None = None) -> Config:
    value = _value(config, key, path, default)
    return value if isinstance(value, dict) else _refuse(key, value, path, "an object with fields")


def n_features(config: Config, key: str, d_model: int, path: Path) -> int:
    """Number of features: what `key` says, else `expansion_factor` times the dimension of the residual stream."""
    if config.get(key):
        return whole(config, key, path)
    expansion = positive(config, "expansion_factor", path)
    return whole({f"expansion_factor * {d_model}": expansion * d_model}, f"expansion_factor * {d_model}", path)


def _value(config: Config, key: str, path: Path, default: Any) -> Any:
    return need(config, key, path) if default is None else config.get(key, default)


def _refuse(key: str, value: Any, path: Path, wanted: str) -> NoReturn:
    problem = f"has {key} = {repr(value)[:80]}, which is not {wanted}"
    raise BadInput(FIELD, str(path), problem, "download it again, or check saes.kind")
