"""A few occurrences of each dimension, chosen by a total order, so that merging them in any order gives the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

NONE = np.iinfo(np.int32).max
"""Point, sequence and position of an empty place; its value is 0."""

FIELDS = ("value", "point", "sequence", "position")


@dataclass(eq=False)
class Examples:
    """Up to K occurrences of each of m dimensions, in order; empty places last. All arrays are [m, K]."""

    value: np.ndarray
    """float32, signed"""
    point: np.ndarray
    """int32"""
    sequence: np.ndarray
    """int32, of the study"""
    position: np.ndarray
    """int32"""

    @classmethod
    def none(cls, m: int, k: int) -> Examples:
        empty = [np.full((m, k), NONE, np.int32) for _ in range(3)]
        return cls(np.zeros((m, k), np.float32), *empty)

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """All places of the same dimensions side by side, unordered."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts], axis=1) for f in fields(cls)))

    def take(self, rows: np.ndarray | slice) -> Examples:
        return Examples(*(getattr(self, name)[rows] for name in FIELDS))

    def put(self, rows: np.ndarray | slice, values: Examples) -> None:
        for name in FIELDS:
            getattr(self, name)[rows] = getattr(values, name)

    def best(self, order: np.ndarray, k: int) -> Examples:
        """The first k places of each dimension in `order` [m, K]."""
        return Examples(*(np.take_along_axis(getattr(self, name), order[:, :k], axis=1) for name in FIELDS))


def by_magnitude(e: Examples) -> np.ndarray:
    """Order of the places: largest magnitude, then sequence, point, position."""
    return np.lexsort((e.position, e.point, e.sequence, -np.abs(e.value)), axis=1)


def by_place(e: Examples) -> np.ndarray:
    """Order of the places: point, sequence, position; as loops over points, then sequences, would meet them."""
    return np.lexsort((e.position, e.sequence, e.point), axis=1)


def raise_largest(kept: Examples, rows: np.ndarray | slice, new: Examples) -> None:
    """Merge `new` into dimensions `rows` of `kept`, which keeps the largest."""
    worst = np.abs(kept.value[rows, -1])
    may_enter = (np.abs(new.value[:, 0]) >= worst) & (new.point[:, 0] != NONE)
    _merge(kept, rows, new, may_enter, by_magnitude)


def keep_first(kept: Examples, rows: np.ndarray | slice, new: Examples) -> None:
    """Merge `new` into dimensions `rows` of `kept`, which keeps the first."""

    def place(e: Examples, column: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        return (e.point[rows, column].astype(np.int64) << 32) + e.sequence[rows, column]

    may_enter = (place(new, 0) <= place(kept, -1, rows)) & (new.point[:, 0] != NONE)
    _merge(kept, rows, new, may_enter, by_place)


def _merge(kept: Examples, rows: np.ndarray | slice, new: Examples, which: np.ndarray, order) -> None:
    """Merge only the dimensions where something can enter: after a few states, hardly any."""
    if not which.any():
        return
    target = (np.arange(len(kept.value))[rows])[which]
    both = Examples.joined([kept.take(target), new.take(which)])
    kept.put(target, both.best(order(both), kept.value.shape[1]))
