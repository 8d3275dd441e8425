"""Which dimensions are set to zero: the systematic ones, the largest of them, and as many random others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.outliers.spec import AblationSettings, headline_site
from tasks.seeds import derive_seed

CONDITIONS = ("none", "systematic", "random_systematic", "largest", "random_largest")
"""All there are, each beside its control: the order in which they are measured and shown."""


@dataclass(frozen=True)
class Condition:
    name: str
    draw: int
    """Number of the random draw; 0 where nothing is random."""
    dims: tuple[int, ...]
    """Ascending."""


@dataclass(frozen=True)
class Found:
    """Dimensions of the headline site and variant, largest magnitude first."""

    systematic: list[int]
    with_outliers: list[int]
    """The systematic ones among them."""


FOUND_BY = ("site", "positions", "dim", "systematic", "occurrences", "max_magnitude")
"""Columns of table `dimensions` that `found_dims` reads."""


def found_dims(dimensions: pa.Table, summary: Mapping[str, Any]) -> Found:
    """dimensions, summary: outputs of `outliers.summary`."""
    site = headline_site(summary["sites"])
    mine = pc.and_(pc.equal(dimensions["site"], site), pc.equal(dimensions["positions"], summary["headline"]))
    rows = dimensions.filter(pc.and_(mine, pc.greater(dimensions["occurrences"], 0)))
    rows = rows.sort_by([("max_magnitude", "descending"), ("dim", "ascending")])
    return Found(rows.filter(rows["systematic"])["dim"].to_pylist(), rows["dim"].to_pylist())


def conditions(found: Found, d_model: int, settings: AblationSettings, seed: int) -> list[Condition]:
    """What is measured, in order: nothing at zero, then the systematic dimensions and random ones, then the largest.

    The largest are those of the systematic dimensions; left out when they are all of them. Where no dimension is
    systematic, the largest with any outlier are set to zero: the criteria are a convention, the harm is not.

    Random dimensions are drawn without replacement from those that are not systematic, nor set to zero themselves.
    Where these are no more than wanted, the one draw there is takes all of them; where there are none, there is none.
    """
    plan = [Condition("none", 0, ())]
    chosen = {"systematic": found.systematic}
    if len(found.systematic) > settings.largest or not found.systematic:
        chosen["largest"] = (found.systematic or found.with_outliers)[: settings.largest]
    for name, dims in chosen.items():
        if not dims:
            continue
        others = np.setdiff1d(np.arange(d_model), [*found.systematic, *dims])
        plan.append(Condition(name, 0, tuple(sorted(dims))))
        size = min(len(dims), len(others))
        draws = settings.random_draws if size < len(others) else min(len(others), 1)
        for draw in range(draws):
            rng = np.random.default_rng(derive_seed("ablation", seed, f"random_{name}", draw))
            drawn = rng.choice(others, size, replace=False)
            plan.append(Condition(f"random_{name}", draw, tuple(sorted(drawn.tolist()))))
    return plan
