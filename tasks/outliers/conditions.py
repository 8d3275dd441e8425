"""Which dimensions are set to zero: the systematic ones, the largest of them, and as many random others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.outliers.spec import AblationSettings
from tasks.seeds import derive_seed


@dataclass(frozen=True)
class Condition:
    name: str
    draw: int
    """Number of the random draw; 0 where nothing is random."""
    dims: tuple[int, ...]
    """Ascending."""


def systematic_dims(dimensions: pa.Table, summary: Mapping[str, Any]) -> list[int]:
    """The systematic dimensions of the headline site and variant, largest magnitude first.

    dimensions, summary: outputs of `outliers.summary`.
    """
    site = "norms" if "norms" in summary["sites"] else "residual"
    chosen = dimensions.filter(
        pc.and_(
            pc.and_(pc.equal(dimensions["site"], site), pc.equal(dimensions["positions"], summary["headline"])),
            dimensions["systematic"],
        )
    )
    order = [("max_magnitude", "descending"), ("dim", "ascending")]
    return chosen.sort_by(order)["dim"].to_pylist()


def conditions(systematic: list[int], d_model: int, settings: AblationSettings, seed: int) -> list[Condition]:
    """What is measured, in order: nothing at zero, then the systematic dimensions and random ones, then the largest.

    systematic: largest first. The largest are left out when they are all of the systematic ones. Random dimensions
    are drawn without replacement from those that are not systematic. Where these are no more than wanted, the one draw
    there is takes all of them; where there are none, there is none.
    """
    found = [Condition("none", 0, ())]
    if not systematic:
        return found
    chosen = {"systematic": systematic}
    if len(systematic) > settings.largest:
        chosen["largest"] = systematic[: settings.largest]
    others = np.setdiff1d(np.arange(d_model), systematic)
    for name, dims in chosen.items():
        found.append(Condition(name, 0, tuple(sorted(dims))))
        size = min(len(dims), len(others))
        draws = settings.random_draws if size < len(others) else min(len(others), 1)
        for draw in range(draws):
            rng = np.random.default_rng(derive_seed("ablation", seed, f"random_{name}", draw))
            drawn = rng.choice(others, size, replace=False)
            found.append(Condition(f"random_{name}", draw, tuple(sorted(drawn.tolist()))))
    return found
