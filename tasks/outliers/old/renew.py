"""A document of the old layout, as far as it was read, in the new layout; and what has to be said about it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tasks.json_stream.source import Source
from tasks.outliers.old.align import Aligned, align
from tasks.outliers.old.differences import LARGEST
from tasks.outliers.old.document import Batch, Document
from tasks.outliers.old.said import Said, say_all
from tasks.outliers.old.tally import Found, Shares
from tasks.outliers.results_layout import Record, assemble, shortest


def renew(document: Document, others: Sequence[Document], source: Source, shares: Shares) -> tuple[dict, Said]:
    """The new document, and what has to be said, which it holds too.

    Args:
        others: further documents in the same file, which are left out.
    """
    aligned = align(document)
    names = document.names.in_order()
    place = {name: i for i, name in enumerate(names)}
    origins = _origins(document, aligned)
    pairs = [(batch_id, found) for batch_id, (_, of_batch) in origins.items() for found in of_batch]
    pairs += [(None, found) for found in aligned.unassigned]
    records = [
        _record(batch_id, found, sorted(place[name] for name in document.names.of(found.points)))
        for batch_id, found in pairs
    ]
    said = say_all(document, others, aligned, origins, records)
    new = assemble(
        analysis_summary={"total_batches": len(document.batches), **_finite(document.summary)},
        run_config={
            **_finite(document.run_config),
            "layer_share": shares.layer,
            "position_share": shares.position,
            "site": "norms",
            "positions": "all",
        },
        points=names,
        records=records,
        batches=[_batch(document.batches.get(i) or Batch(i), origin, names) for i, (origin, _) in origins.items()],
        unique_dimensions=_unique_dimensions(document, records, shares),
        more={"negative_occurrences": [found.negative for _, found in pairs]},
        new={
            "converted_from": {
                "name": source.location.rstrip("/").rpartition("/")[2],
                "bytes": source.stored_bytes,
                "sha256": source.sha256,
                "text_bytes": source.text_bytes,
                "complete": not said.lost,
                "lost": said.lost,
                "differing": said.differing,
                "notes": said.notes,
            }
        },
    )
    return new, said


def _origins(document: Document, aligned: Aligned) -> dict[int, tuple[str, list[Found]]]:
    """Of each batch, where its records are from, and the best ones that there are."""
    origins = {}
    for batch_id in sorted(document.batches.keys() | aligned.by_batch.keys()):
        batch = document.batches.get(batch_id) or Batch(batch_id)
        candidates = {
            "occurrences": batch.recounted,
            "list": batch.listed,
            "header": aligned.by_batch.get(batch_id),
            "nothing": [],
        }
        origins[batch_id] = next((name, found) for name, found in candidates.items() if found is not None)
    return origins


def _record(batch_id: int | None, found: Found, points: list[int]) -> Record:
    return Record(
        batch=batch_id,
        dim=found.dim,
        layer_share=found.layer_share,
        position_share=found.position_share,
        max_magnitude=_single(found.max_magnitude),
        occurrences=found.occurrences,
        points=points,
        first_values=[_single(value) for value in found.first_values],
    )


def _batch(batch: Batch, origin: str, names: Sequence[str]) -> dict[str, Any]:
    stats = [batch.layer_stats.get(name, {}) for name in names]
    shapes = [of_layer.get("shape") for of_layer in stats]
    layer_stats = batch.layer_stats and {
        "num_outliers": [of_layer.get("num_outliers") for of_layer in stats],
        "max_magnitude": [_single(of_layer.get("max_magnitude")) for of_layer in stats],
        "shape": shapes[0] if all(shape == shapes[0] for shape in shapes) else shapes,
    }
    summary = {
        "total_outlier_features": batch.features,
        "threshold": batch.threshold,
        "layer_stats": layer_stats or None,
    }
    return _finite(
        {
            "batch_id": batch.id,
            "run_dir": batch.facts.get("run_dir"),
            "sequences_processed": batch.facts.get("sequences_processed"),
            "outlier_summary": summary,
            "timestamp": batch.facts.get("timestamp"),
            "records_from": origin,
        }
    )


def _unique_dimensions(document: Document, records: Sequence[Record], shares: Shares) -> dict[str, list[Any]]:
    """Columns. What is over all batches comes from those whose occurrences were read; null where there are none."""
    pool = document.pool
    batches = Counter(record.dim for record in records)
    largest: dict[int, float] = {}
    for record in records:
        largest[record.dim] = max(largest.get(record.dim, 0.0), record.max_magnitude)
    points = pool.points.bit_count()
    pooled = {dim: tally.found(dim, points, pool.positions) for dim, tally in pool.dims.items()}
    systematic = {
        dim: found.layer_share >= shares.layer and found.position_share >= shares.position
        for dim, found in pooled.items()
    }
    largest |= {dim: _single(pooled[dim].max_magnitude) for dim in pooled if systematic[dim]}
    dims = sorted(largest, key=lambda dim: (-batches[dim], -largest[dim], dim))
    total = max(len(document.batches), document.stated_batches or 0, 1)

    def over_all(name: str) -> list[Any]:
        return [getattr(pooled[dim], name) if dim in pooled else None for dim in dims]

    return {
        "feature_dim": dims,
        "systematic": [systematic.get(dim) for dim in dims],
        "batches": [batches[dim] for dim in dims],
        "recurrence": [batches[dim] / total for dim in dims],
        "layer_percentage": over_all("layer_share"),
        "seq_percentage": over_all("position_share"),
        "mean_point_percentage": [
            pooled[dim].occurrences / (pool.tokens * pooled[dim].points.bit_count()) if dim in pooled else None
            for dim in dims
        ],
        "total_occurrences": over_all("occurrences"),
        "negative_occurrences": over_all("negative"),
        "max_magnitude": [largest[dim] for dim in dims],
    }


def _single(value: Any) -> Any:
    """A finite number in its shortest form; an infinity as the largest 32-bit number; None for what is no number."""
    if not isinstance(value, int | float) or math.isnan(value):
        return None
    return shortest(value) if math.isfinite(value) else math.copysign(LARGEST, value)


def _finite(content: Any) -> Any:
    """With null for every number that is not finite."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
