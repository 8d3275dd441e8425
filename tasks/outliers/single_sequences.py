"""Tables of single sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor

from tasks.models.points import Point
from tasks.outliers.classify import Pairs
from tasks.outliers.scan import SiteResult
from tasks.outliers.spec import Site, Variant
from tasks.outliers.tables import POINT_NAMES, SEQUENCES, SYSTEMATIC


def point_names(points: Mapping[Site, Sequence[Point]]) -> pa.Table:
    """What the points of each site are called."""
    rows = [
        {"site": site, "point": i, "name": point.name, "layer": point.layer, "kind": point.kind}
        for site, of_site in points.items()
        for i, point in enumerate(of_site)
    ]
    return POINT_NAMES.from_rows(rows)


def systematic_rows(
    site: Site, variant: Variant, found: Pairs, sequences: Sequence[int], lengths: Sequence[int]
) -> pa.Table:
    """The pairs of a batch. sequences, lengths: numbers and tokens of its sequences."""
    row, occurrences = _numpy(found.row), _numpy(found.occurrences)
    positions = np.asarray(lengths)[row] - (variant == "without_first")
    hit = occurrences > 0
    affected = hit.sum(1)
    share = occurrences.sum(1) / np.maximum(affected * positions, 1)
    kept = np.arange(found.first_values.shape[1]) < _numpy(found.filled)[:, None]
    columns = {
        "site": pa.array([site] * len(row), pa.string()),
        "sequence": np.asarray(sequences)[row],
        "dim": _numpy(found.dim),
        "systematic": _numpy(found.systematic[variant]),
        "systematic_all": _numpy(found.systematic["all"]),
        "systematic_without_first": _numpy(found.systematic["without_first"]),
        "layer_share": _numpy(found.layer_share),
        "position_share": _numpy(found.position_share),
        "mean_point_share": share,
        "max_magnitude": _numpy(found.max_magnitude),
        "occurrences": occurrences.sum(1),
        "negative": _numpy(found.negative),
        "points": ragged(np.broadcast_to(np.arange(hit.shape[1], dtype=np.int32), hit.shape), hit),
        "point_occurrences": ragged(occurrences.astype(np.int32), hit),
        "first_values": ragged(_numpy(found.first_values), kept),
        "max_over_rms": _numpy(found.max_over_rms),
        "max_over_median": _numpy(found.max_over_median),
    }
    return SYSTEMATIC.from_columns(columns)


def sequence_rows(site: Site, result: SiteResult, sequences: Sequence[int], lengths: Sequence[int]) -> pa.Table:
    """One row for each sequence of a batch."""
    columns = {
        "site": pa.array([site] * len(sequences), pa.string()),
        "sequence": np.asarray(sequences),
        "tokens": np.asarray(lengths),
        "systematic_all": result.systematic["all"],
        "systematic_without_first": result.systematic["without_first"],
        "nan": result.nan,
        "inf": result.inf,
    }
    return SEQUENCES.from_columns(columns)


def ragged(values: np.ndarray, kept: np.ndarray) -> pa.ListArray:
    """Rows of different lengths: of each row of values [n, k], those where `kept` [n, k] is true."""
    offsets = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[kept]))


def _numpy(t: Tensor) -> np.ndarray:
    return t.cpu().numpy()
