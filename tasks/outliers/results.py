"""The file of results, from the tables of a summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.outliers.results_layout import Record, assemble, shortest, to_json
from tasks.outliers.spec import headline_site

__all__ = ["RunFacts", "document", "to_json"]


@dataclass(frozen=True)
class RunFacts:
    """What the old layout says about the run itself. It is no result: a result does not depend on the clock."""

    completion_time: str | None = None
    run_dir: str | None = None


def document(summary: Mapping[str, Any], tables: Mapping[str, pa.Table], run: RunFacts | None = None) -> dict[str, Any]:
    """The content of ``final_analysis_results.json`` (see `results_layout.DESCRIPTION`), for `to_json`.

    Batches are sequences, numbered from 1. The site is `norms` if it was watched, else `residual`; the positions are
    those of the criteria.

    Args:
        summary: the json `summary` of `outliers.summary`.
        tables: its tables `dimensions`, `points`, `systematic`, `sequences`, `massive`.
    """
    run = run or RunFacts()
    site = headline_site(summary["points"])
    of_site = {name: _where(table, "site", site) for name, table in tables.items() if "site" in table.column_names}
    found = _where(of_site["systematic"], "systematic", True)
    found = found.sort_by([("sequence", "ascending"), ("max_magnitude", "descending"), ("dim", "ascending")])
    dimensions = _where(of_site["dimensions"], "positions", summary["headline"])
    n = summary["sequences"]
    return assemble(
        analysis_summary={"total_batches": n, "total_sequences": n, "completion_time": run.completion_time},
        run_config=_run_config(summary, site, of_site["points"]),
        points=summary["points"][site],
        records=_records(found),
        batches=_batches(of_site["sequences"], summary["criteria"]["threshold"], run),
        unique_dimensions=_unique_dimensions(dimensions),
        more={
            "negative_occurrences": found["negative"].to_pylist(),
            "max_over_rms": _singles(found["max_over_rms"]),
            "max_over_median": _singles(found["max_over_median"]),
        },
        new={
            "outlier_summary": _outlier_summary(summary, dimensions, of_site["points"]),
            "massive_activations": _massive(of_site["massive"]),
            "nearest_massive_activation": summary["nearest_massive"],
            "sites": summary["sites"],
        },
    )


def _run_config(summary: Mapping[str, Any], site: str, points: pa.Table) -> dict[str, Any]:
    text, criteria = summary["text"], summary["criteria"]
    return {
        "model": summary["model"]["source"],
        "dataset": text["location"],
        "num_sequences": summary["sequences"],
        "sequence_length": text["length"],
        "batch_size": 1,
        "threshold": criteria["threshold"],
        "layers": sorted(set(points["layer"].to_pylist())),
        "shard_range_inclusive": [0, summary["sequences"] - 1],
        "experiment_name": summary["name"],
        "site": site,
        "positions": summary["headline"],
        **{name: value for name, value in criteria.items() if name != "threshold"},
        "forward_batch_size": summary["batch_size"],
    }


def _records(found: pa.Table) -> list[Record]:
    columns = zip(
        (found["sequence"].to_numpy() + 1).tolist(),
        found["dim"].to_pylist(),
        found["layer_share"].to_pylist(),
        found["position_share"].to_pylist(),
        _singles(found["max_magnitude"]),
        found["occurrences"].to_pylist(),
        found["points"].to_pylist(),
        _ragged_singles(found["first_values"]),
        strict=True,
    )
    return [Record(*row) for row in columns]


def _batches(sequences: pa.Table, threshold: float, run: RunFacts) -> list[dict[str, Any]]:
    rows = sequences.sort_by("sequence").select(["sequence", "tokens", "nan", "inf"]).to_pylist()
    return [
        {
            "batch_id": row.pop("sequence") + 1,
            "run_dir": run.run_dir,
            "sequences_processed": 1,
            "outlier_summary": {"threshold": threshold, **row},
            "timestamp": run.completion_time,
        }
        for row in rows
    ]


def _unique_dimensions(dimensions: pa.Table) -> dict[str, list[Any]]:
    kept = dimensions.filter(pc.or_(dimensions["systematic"], pc.greater(dimensions["sequences"], 0)))
    kept = kept.sort_by([("sequences", "descending"), ("max_magnitude", "descending"), ("dim", "ascending")])
    plain = {
        "feature_dim": "dim",
        "systematic": "systematic",
        "batches": "sequences",
        "recurrence": "recurrence",
        "layer_percentage": "layer_share",
        "seq_percentage": "position_share",
        "mean_point_percentage": "mean_point_share",
        "max_point_percentage": "max_point_share",
        "total_occurrences": "occurrences",
        "negative_occurrences": "negative",
        "relative_systematic": "relative_systematic",
        "relative_layer_percentage": "relative_layer_share",
        "relative_seq_percentage": "relative_position_share",
        "relative_occurrences": "relative_occurrences",
        "massive_occurrences": "massive_occurrences",
    }
    singles = ("max_magnitude", "max_over_rms", "max_over_median")
    columns = {key: kept[column].to_pylist() for key, column in plain.items()}
    return columns | {key: _singles(kept[key]) for key in singles}


def _outlier_summary(summary: Mapping[str, Any], dimensions: pa.Table, points: pa.Table) -> dict[str, Any]:
    """Over all batches, with every position or without the first, as everything else."""
    suffix = "" if summary["headline"] == "all" else "_without_first"
    points = points.sort_by("point")
    hit = pc.greater(dimensions["occurrences"], 0)
    return {
        "total_outlier_features": pc.sum(hit).as_py() or 0,
        "threshold": summary["criteria"]["threshold"],
        "layer_stats": {
            "num_outliers": points[f"outliers{suffix}"].to_pylist(),
            "max_magnitude": _singles(points[f"max_magnitude{suffix}"]),
            "values": points["values"].to_pylist(),
            "nan": points["nan"].to_pylist(),
            "inf": points["inf"].to_pylist(),
        },
    }


def _massive(massive: pa.Table) -> dict[str, list[Any]]:
    """Columns, one entry for each dimension with massive activations; by point they are in the table."""
    by_dim = massive.group_by("dim").aggregate(
        [("point", "count_distinct"), ("occurrences", "sum"), ("at_first_position", "sum"), ("max_magnitude", "max")]
    )
    by_dim = by_dim.sort_by([("max_magnitude_max", "descending"), ("dim", "ascending")])
    return {
        "feature_dim": by_dim["dim"].to_pylist(),
        "points": by_dim["point_count_distinct"].to_pylist(),
        "occurrences": by_dim["occurrences_sum"].to_pylist(),
        "at_first_position": by_dim["at_first_position_sum"].to_pylist(),
        "max_magnitude": _singles(by_dim["max_magnitude_max"]),
    }


def _where(table: pa.Table, column: str, value: Any) -> pa.Table:
    return table.filter(pc.equal(table[column], value))


def _singles(column: pa.ChunkedArray) -> list[float | None]:
    """Shortest digits of float32 numbers; None for what JSON can't say."""
    return [shortest(value) if np.isfinite(value) else None for value in column.to_numpy()]


def _ragged_singles(column: pa.ChunkedArray) -> list[list[float | None]]:
    """The same of lists of float32 numbers."""
    values = iter(_singles(pa.chunked_array([pc.list_flatten(column).combine_chunks()])))
    return [[next(values) for _ in range(n)] for n in pc.list_value_length(column).to_pylist()]
