"""The per-occurrence method, and result files of the old layout that it wrote: written from the definition, slowly.

Everything that is faster is checked against this: one Python dictionary for each outlier, a loop over all of them for
each number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from torch import Tensor

THRESHOLD, LAYER_SHARE, POSITION_SHARE = 6.0, 0.25, 0.06


def find_outliers(activations: dict[str, Tensor], threshold: float = THRESHOLD) -> dict:
    """Every occurrence of a batch, in the order of layer, sequence, position, dimension.

    Args:
        activations: layer name -> [batch, position, d], floating point of any width.

    Returns:
        ``{"feature_outliers": {dim: [{"layer", "seq_pos", "value"}]}, "layer_stats": {layer: {}}, "threshold": float}``
        A NaN is no occurrence, an infinity is one; `max_magnitude` of a layer with a NaN is NaN.
    """
    feature_outliers: dict[int, list[dict]] = {}
    layer_stats: dict[str, dict] = {}
    for layer, tensor in activations.items():
        values = tensor.float()
        found = 0
        for b, s, h in (values.abs() >= threshold).nonzero().tolist():
            occurrence = {"layer": layer, "seq_pos": s, "value": values[b, s, h].item()}
            feature_outliers.setdefault(h, []).append(occurrence)
            found += 1
        layer_stats[layer] = {
            "num_outliers": found,
            "max_magnitude": values.abs().max().item(),
            "outlier_percentage": found / values.numel() * 100,
            "shape": list(values.shape),
        }
    return {"feature_outliers": feature_outliers, "layer_stats": layer_stats, "threshold": threshold}


def systematic_outliers(
    outlier_info: dict,
    total_layers: int | None = None,
    seq_len: int | None = None,
    layer_share: float = LAYER_SHARE,
    position_share: float = POSITION_SHARE,
) -> list[dict]:
    """The records of the systematic dimensions of a batch, largest magnitude first.

    Args:
        outlier_info: from `find_outliers`.
        total_layers: denominator of `layer_percentage`; None takes the number of layers that were looked at.
        seq_len: denominator of `seq_percentage`; None takes the length of the first layer's tensor.
    """
    shapes = [stats["shape"] for stats in outlier_info["layer_stats"].values()]
    total_layers = len(shapes) if total_layers is None else total_layers
    seq_len = shapes[0][1] if seq_len is None else seq_len
    records = []
    for dim, occurrences in outlier_info["feature_outliers"].items():
        layers = {occurrence["layer"] for occurrence in occurrences}
        positions = {occurrence["seq_pos"] for occurrence in occurrences}
        record = {
            "feature_dim": int(dim),
            "layer_percentage": len(layers) / total_layers,
            "seq_percentage": len(positions) / seq_len,
            "max_magnitude": max(abs(occurrence["value"]) for occurrence in occurrences),
            "total_occurrences": len(occurrences),
            "layers_affected": sorted(layers),
            "example_values": [occurrence["value"] for occurrence in occurrences[:5]],
        }
        if record["layer_percentage"] >= layer_share and record["seq_percentage"] >= position_share:
            records.append(record)
    return sorted(records, key=lambda record: -record["max_magnitude"])


def old_results(
    batches: Sequence[dict[str, Tensor]],
    run_config: dict[str, Any] | None = None,
    *,
    threshold: float = THRESHOLD,
    layer_share: float = LAYER_SHARE,
    position_share: float = POSITION_SHARE,
) -> dict:
    """The content of ``final_analysis_results.json`` in the old layout.

    Args:
        batches: of each batch its activations, as `find_outliers` takes them.
        run_config: replaces entries of the one that is made up from the activations.
    """
    batch_results, everything = [], []
    start = datetime(2025, 10, 24, 12, 0, 0, tzinfo=UTC).replace(tzinfo=None)
    for i, activations in enumerate(batches):
        outlier_info = find_outliers(activations, threshold)
        systematic = systematic_outliers(outlier_info, layer_share=layer_share, position_share=position_share)
        everything.extend(systematic)
        batch_results.append(
            {
                "batch_id": i + 1,
                "run_dir": f"results/run_{i + 1:03d}",
                "sequences_processed": next(iter(activations.values())).shape[0],
                "systematic_outliers": systematic,
                "outlier_info": outlier_info,
                "timestamp": (start + timedelta(minutes=i)).isoformat(),
            }
        )
    return _whole(batch_results, everything, _run_config(batches, threshold) | (run_config or {}))


def write_old_results(
    path: Path,
    batches: Sequence[dict[str, Tensor]],
    run_config: dict[str, Any] | None = None,
    **criteria: float,
) -> dict:
    """Write `old_results` as the old code did, infinities and NaN as json.dump has them; return it."""
    results = old_results(batches, run_config, **criteria)
    with path.open("w") as file:
        json.dump(results, file, indent=2)
    return results


def _run_config(batches: Sequence[dict[str, Tensor]], threshold: float) -> dict[str, Any]:
    batch, length, _ = next(iter(batches[0].values())).shape
    sequences = sum(next(iter(activations.values())).shape[0] for activations in batches)
    return {
        "model": "example/model-1b",
        "dataset": "example/text",
        "num_sequences": sequences,
        "sequence_length": length,
        "batch_size": batch,
        "threshold": threshold,
        "layers": None,
        "shard_range_inclusive": [0, sequences - 1],
        "experiment_name": "example",
    }


def _whole(batch_results: list[dict], everything: list[dict], run_config: dict[str, Any]) -> dict:
    top: dict[int, dict] = {}
    for record in everything:
        dim = record["feature_dim"]
        seen = top.setdefault(dim, {"feature_dim": dim, "max_magnitude": 0.0, "occurrences": 0})
        seen["max_magnitude"] = max(seen["max_magnitude"], record["max_magnitude"])
        seen["occurrences"] += 1
    return {
        "analysis_summary": {
            "total_batches": len(batch_results),
            "total_sequences": sum(batch["sequences_processed"] for batch in batch_results),
            "total_systematic_outliers": len(everything),
            "completion_time": "2025-10-24T13:00:00",
        },
        "run_config": run_config,
        "top_features": sorted(top.values(), key=lambda feature: -feature["max_magnitude"]),
        "all_systematic_outliers": everything,
        "batch_results": batch_results,
    }
