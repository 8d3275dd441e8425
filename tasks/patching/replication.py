"""Are the trials independent samples? Repeats that are no samples make every p-value too small."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import BadInput
from tasks.patching.effects import CELL

LONG_RESPONSE = 16
"""Tokens from which on two sampled responses of a cell are practically never the same."""
MAX_COPIES = 0.1
"""Share of a cell's long responses that may be copies of another one before it is alarming."""


def check_samples(discovery: pa.Table, confirmation: pa.Table | None, temperature: float) -> None:
    """BadInput if trials of a cell repeat a trial number or a seed, are greedy repeats, or if phases share seeds."""
    for phase, trials in (("discovery", discovery), ("confirmation", confirmation)):
        if trials is None:
            continue
        cells = trials.group_by(list(CELL)).aggregate(
            [([], "count_all"), ("trial", "count_distinct"), ("seed", "count_distinct")]
        )
        for row in cells.to_pylist():
            where = ", ".join(str(row[name]) for name in CELL if row[name] is not None)
            n = row["count_all"]
            if temperature == 0 and n > 1:
                raise BadInput(
                    f"{phase} trials of {where}",
                    n,
                    "greedy repeats are one observation, not samples",
                    "sample with a temperature above 0, or run one trial per cell",
                )
            for column in ("trial", "seed"):
                if row[f"{column}_count_distinct"] < n:
                    raise BadInput(
                        f"{phase} trials of {where}",
                        n,
                        f"only {row[f'{column}_count_distinct']} different values of {column!r}",
                        "pass every shard once, with trials whose seeds derive from their number",
                    )
    if confirmation is not None:
        shared = pc.sum(pc.is_in(confirmation["seed"], discovery["seed"].combine_chunks())).as_py()
        if shared:
            raise BadInput(
                "confirmation trials", shared, "their seeds were used in discovery", "confirm on held-out seeds"
            )


def duplicate_alarms(trials: pa.Table) -> list[dict[str, Any]]:
    """An alarm if cells hold copies of long responses although they were sampled with different seeds."""
    long = trials.filter(pc.greater_equal(trials["n_tokens"], LONG_RESPONSE))
    cells = long.group_by(list(CELL)).aggregate([([], "count_all"), ("tokens", "count_distinct")]).to_pylist()
    alarming = [row for row in cells if row["count_all"] - row["tokens_count_distinct"] > MAX_COPIES * row["count_all"]]
    if not alarming:
        return []
    copies = sum(row["count_all"] - row["tokens_count_distinct"] for row in alarming)
    return [
        {
            "code": "duplicate_responses",
            "cells": len(alarming),
            "responses": copies,
            "text": f"{copies} responses of {LONG_RESPONSE} or more tokens are copies of another one of their cell, in "
            f"{len(alarming)} of {len(cells)} cells. If decoding was not really sampled, intervals are too narrow and "
            "q-values too small.",
        }
    ]
