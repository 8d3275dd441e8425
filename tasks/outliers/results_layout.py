"""The layout of ``final_analysis_results.json``: its keys, what they mean, and the JSON text.

All keys of the old layout are there with their old meaning, so that what reads the old one reads this one; but no
occurrence is stored, nothing is stored twice, and every number is finite.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESULTS = "final_analysis_results.json"
"""What the file is called wherever it lies."""

NAME, VERSION = "outlier-results", 2
"""The old layout, with every occurrence, counts as the first version."""

DESCRIPTION = [
    "analysis_summary: total_systematic_outliers counts (batch, dimension) pairs, the records of "
    "all_systematic_outliers; unique_systematic_dimensions counts their different dimensions",
    "run_config: an outlier is a value of at least the threshold's magnitude; a dimension is systematic where "
    "layer_share and position_share are reached. site: what was watched (norms: what enters each block's attention "
    "and FFN; residual: what leaves each block). positions: all, or without_first when the first position of every "
    "sequence was left out",
    "top_features: by dimension, the largest magnitude in any batch and in how many batches it is systematic",
    "points: the watched points in order. layers_affected and the lists of layer_stats go by this order",
    "unique_dimensions: columns, one entry for each dimension that is systematic in any batch, or over all batches "
    "taken as one (systematic). batches: in how many it is systematic by itself; recurrence: their share. "
    "layer_percentage, seq_percentage (positions: union over batches, of the longest), total_occurrences, "
    "negative_occurrences and max_magnitude (of any value, an outlier or not) are over all batches. "
    "mean_point_percentage, max_point_percentage: share of the tokens with an outlier at a point, mean over the "
    "affected points, and largest. relative_...: of outliers that are so many times their token's root mean square. "
    "massive_occurrences: massive activations. max_over_rms: largest magnitude over its token's root mean square, "
    "among the values that meet any of the three criteria; max_over_median: the same over the median magnitude (null: "
    "the median is 0), in tokens with an outlier or a massive activation",
    "outlier_summary: total_outlier_features counts dimensions with any outlier; layer_stats: columns by point; "
    "max_magnitude: of any value",
    "massive_activations: columns by dimension; points: at how many; max_magnitude: of a massive one",
    "nearest_massive_activation: by site, where it has no massive activation: the value that comes nearest to one, the "
    "share of the two limits that it reaches at least being the largest; ratio: its magnitude over its token's median "
    "(null: the median is 0); sequence and position count from 0. null where there is a massive activation, or no "
    "outlier",
    "sites: numbers of each site, by positions",
    "converted_from: the file of the old layout, what of it was lost, and where it contradicts itself. records_from "
    "of a batch: its occurrences, its own list, the header's list over all batches, or nothing. An infinity is written "
    "as 3.4028235e38, the largest 32-bit number; batch_id is null where the file does not tell it",
    "all_systematic_outliers: one record for each batch and dimension that is systematic there, by batch and falling "
    "magnitude. Percentages are shares between 0 and 1; layers_affected are indices into points; example_values are "
    "the first occurrences by point and position",
    "batch_results: a batch is a sequence, or what a file of the old layout calls one. Of its systematic_outliers, "
    "the whole records are those of all_systematic_outliers with its batch_id",
    "all_systematic_outliers_more: columns in the order of all_systematic_outliers",
    "numbers: what was computed in 32 bits has the shortest digits that give the same 32 bits back",
]
"""What is not plain from the names. The file holds it."""


@dataclass(frozen=True)
class Record:
    """A dimension that is systematic in one batch."""

    batch: int | None
    """Its id; None where an old file does not tell."""
    dim: int
    layer_share: float
    position_share: float
    max_magnitude: float
    occurrences: int
    points: Sequence[int]
    """Where it has outliers, ascending."""
    first_values: Sequence[float]

    def to_json(self) -> dict[str, Any]:
        return {
            "feature_dim": self.dim,
            "layer_percentage": self.layer_share,
            "seq_percentage": self.position_share,
            "max_magnitude": self.max_magnitude,
            "total_occurrences": self.occurrences,
            "layers_affected": list(self.points),
            "example_values": list(self.first_values),
            "batch_id": self.batch,
        }


def assemble(
    *,
    analysis_summary: Mapping[str, Any],
    run_config: Mapping[str, Any],
    points: Sequence[str],
    records: Sequence[Record],
    batches: Iterable[Mapping[str, Any]],
    unique_dimensions: Mapping[str, Sequence[Any]],
    more: Mapping[str, Sequence[Any]],
    new: Mapping[str, Any],
) -> dict[str, Any]:
    """The whole document, in an order that also serves programs which cut their part out of the text.

    Args:
        records: in their order.
        batches: entries of `batch_results`, without their `systematic_outliers`.
        unique_dimensions, more: columns.
        new: further keys that the old layout does not have.
    """
    dims: dict[int | None, list[int]] = {}
    for record in records:
        dims.setdefault(record.batch, []).append(record.dim)
    counts = {
        "total_systematic_outliers": len(records),
        "unique_systematic_dimensions": len({record.dim for record in records}),
    }
    return {
        "analysis_summary": {**analysis_summary, **counts},
        "run_config": dict(run_config),
        "format": {"name": NAME, "version": VERSION, "description": DESCRIPTION},
        "top_features": top_features(records),
        "points": list(points),
        "unique_dimensions": dict(unique_dimensions),
        **new,
        "all_systematic_outliers": [record.to_json() for record in records],
        "batch_results": [
            {**batch, "systematic_outliers": [{"feature_dim": dim} for dim in dims.get(batch["batch_id"], [])]}
            for batch in batches
        ],
        "all_systematic_outliers_more": dict(more),
    }


def top_features(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Of each dimension, its largest magnitude in any batch and its number of batches; largest first."""
    top: dict[int, tuple[float, int]] = {}
    for record in records:
        largest, batches = top.get(record.dim, (0.0, 0))
        top[record.dim] = max(largest, record.max_magnitude), batches + 1
    order = sorted(top.items(), key=lambda item: (-item[1][0], item[0]))
    return [{"feature_dim": dim, "max_magnitude": m, "occurrences": n} for dim, (m, n) in order]


def shortest(value: float | np.floating) -> float:
    """The number with the fewest digits that is the same in 32 bits; `value` itself where 32 bits can't hold it."""
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return float(str(single)) if float(single) == value else float(value)


def to_json(document: Mapping[str, Any]) -> bytes:
    """JSON with one record a line: compact, and still fit for a pager, grep and diff.

    Raises:
        ValueError: a number is not finite.
    """
    parts = (f"{_dumps(key)}:{_lines(value)}" for key, value in document.items())
    return ("{" + ",\n".join(parts) + "}\n").encode()


def _lines(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(map(_dumps, value)) + "]"
    return _dumps(value)


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
