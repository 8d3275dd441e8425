"""In what two results differ, pair by pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tasks.outliers.old.tally import Found

FIELDS = {
    "layer_percentage": "layer_share",
    "seq_percentage": "position_share",
    "max_magnitude": "max_magnitude",
    "total_occurrences": "occurrences",
    "layers_affected": "points",
    "example_values": "first_values",
}
"""Of a record, as results call it -> as `Found` does."""

LARGEST = 3.4028235e38
"""The largest 32-bit number: what the new layout writes for an infinity."""

SHOWN = 20
"""Differences that are written out one by one."""

Pair = tuple[int | None, int, int]
"""(batch, dimension, 0); and of batches that a damaged file does not tell, (None, dimension, a running number)"""
Difference = tuple[Pair, str, Any, Any]
"""(pair, field, on one side, on the other); the field `systematic` where one side lacks the pair"""


def differences(one: Mapping[Pair, Mapping[str, Any]], other: Mapping[Pair, Mapping[str, Any]]) -> Iterator[Difference]:
    """Of records by pair, each with `FIELDS`; in order of the pairs."""
    for pair in sorted(one.keys() | other.keys(), key=_order):
        if pair not in one or pair not in other:
            yield pair, "systematic", pair in one, pair in other
            continue
        for name in FIELDS:
            a, b = one[pair][name], other[pair][name]
            if not _same(name, a, b):
                yield pair, name, a, b


def _order(pair: Pair) -> tuple[bool, int, int, int]:
    batch, dim, number = pair
    return batch is None, batch or 0, dim, number


def _same(name: str, a: Any, b: Any) -> bool:
    if name == "max_magnitude":
        return _single(a) == _single(b)
    if name == "example_values":
        return [_single(value) for value in a] == [_single(value) for value in b]
    return a == b


def _single(value: float) -> float:
    """As 32 bits hold it, of which a result may have the shortest digits; an infinity as the new layout has it."""
    return float(np.float32(min(max(value, -LARGEST), LARGEST)))


def fields(found: Found, points: Iterable[str]) -> dict[str, Any]:
    """What is compared of a record that affects these points."""
    record = {name: getattr(found, attribute) for name, attribute in FIELDS.items()}
    return record | {"layers_affected": frozenset(points)}


def describe(difference: Difference, one: str, other: str) -> str:
    """A difference in words. one, other: what the sides are called."""
    (batch, dim, _), name, a, b = difference
    where = f"batch {'unknown' if batch is None else batch}, dimension {dim}: {name}"
    if name == "systematic":
        return f"{where} by {one if a else other} only"
    if isinstance(a, frozenset):
        a, b = (", ".join(sorted(x - y)) or "no other" for x, y in ((a, b), (b, a)))
        return f"{where}: {a} by {one} alone, {b} by {other} alone"
    return f"{where} is {a} by {one}, {b} by {other}"
