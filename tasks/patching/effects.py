"""Sampled effects: for each feature, prompt, contrast and outcome, two counts and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tasks.errors import BadInput
from tasks.patching.spec import HIGH_VS_LOW, Mode, Phase
from tasks.patching.tables import MEASURED
from tasks.stats.intervals import newcombe, rate
from tasks.stats.proportions import Test, exact_test

Key = tuple[int, str, str, str]
"""(candidate, prompt, contrast, choice): one test of a study."""

CELL = ("prompt", "arm", "candidate", "layer", "value_name")
"""Trials that agree in these columns are samples of one rate."""


class Cell(NamedTuple):
    """`candidate`, `layer` and `value_name` are None for arms that don't have them."""

    prompt: str
    arm: str
    candidate: int | None
    layer: int | None
    value_name: str | None


class Feature(NamedTuple):
    candidate: int
    layer: int
    feature: int


def key_of(row: Mapping[str, Any]) -> Key:
    return row["candidate"], row["prompt"], row["contrast"], row["choice"]


def edited(arm: str, feature: Feature, prompt: str, value: str) -> Cell:
    """The cell of one value of a feature's edit, or of the same edit along its random direction."""
    return Cell(prompt, arm, feature.candidate, feature.layer, value)


def contrasts(feature: Feature, prompt: str, low: str, high: str, mode: Mode) -> dict[str, tuple[Cell, Cell]]:
    """Cells (a, b) of each contrast; its effect is rate(a) - rate(b).

    In mode `reconstruct` every edited trial lacks the SAE's error, so the unedited side is the layer's
    reconstruction instead of the baseline.
    """
    if mode == "reconstruct":
        unedited, name = Cell(prompt, "reconstruction", None, feature.layer, None), "reconstruction"
    else:
        unedited, name = Cell(prompt, "baseline", None, None, None), "baseline"
    at_low, at_high = (edited("feature", feature, prompt, value) for value in (low, high))
    return {
        HIGH_VS_LOW: (at_high, at_low),
        f"high_vs_{name}": (at_high, unedited),
        f"low_vs_{name}": (at_low, unedited),
    }


def count_outcomes(trials: pa.Table) -> dict[Cell, dict[str, int]]:
    """Trials of each outcome in each cell."""
    counts: dict[Cell, dict[str, int]] = {}
    for row in trials.group_by([*CELL, "choice"]).aggregate([([], "count_all")]).to_pylist():
        cell = Cell(*(row[name] for name in CELL))
        counts.setdefault(cell, {})[row["choice"]] = row["count_all"]
    return counts


def edited_features(trials: pa.Table) -> list[Feature]:
    """Features of arm `feature`, in the order of their candidate numbers."""
    rows = trials.group_by(["arm", "candidate", "layer", "feature"]).aggregate([]).to_pylist()
    return sorted(Feature(r["candidate"], r["layer"], r["feature"]) for r in rows if r["arm"] == "feature")


def measure_effects(
    trials: pa.Table,
    phase: Phase,
    prompts: Sequence[str],
    outcomes: Sequence[str],
    low: str,
    high: str,
    mode: Mode = "keep_error",
    alpha: float = 0.05,
    test: Test = "fisher",
    planned: Mapping[Key, int] = MappingProxyType({}),
) -> pa.Table:
    """Table `MEASURED`: a row per feature, prompt, contrast and outcome, `invalid` being one.

    Rates are shares of all trials of a cell, invalid answers included, since dropping them would depend on the
    condition. Interval: Newcombe at level 1 - alpha, two-sided. The test is one-sided where `planned` names its
    direction, else two-sided. A side without trials leaves effect, interval and p null. BadInput if trials have a
    prompt or an outcome that the study does not know.
    """
    counts = count_outcomes(trials)
    _check_known("prompt", {cell.prompt for cell in counts}, prompts)
    _check_known("choice", {outcome for cell in counts.values() for outcome in cell}, outcomes)
    rows: list[tuple[Any, ...]] = []
    for feature in edited_features(trials):
        for prompt in prompts:
            for contrast, (a, b) in contrasts(feature, prompt, low, high, mode).items():
                in_a, in_b = counts.get(a, {}), counts.get(b, {})
                n_a, n_b = sum(in_a.values()), sum(in_b.values())
                for outcome in outcomes:
                    about = (phase, *feature, prompt, contrast, outcome)
                    rows.append((*about, n_a, in_a.get(outcome, 0), n_b, in_b.get(outcome, 0)))
    names = ("phase", "candidate", "layer", "feature", "prompt", "contrast", "choice", "n_a", "k_a", "n_b", "k_b")
    columns: dict[str, Any] = dict(zip(names, map(list, zip(*rows, strict=True)) if rows else ([],) * 11, strict=True))
    n_a, k_a, n_b, k_b = (np.array(columns[name], dtype=np.int64) for name in ("n_a", "k_a", "n_b", "k_b"))
    keys = zip(*(columns[name] for name in ("candidate", "prompt", "contrast", "choice")), strict=True)
    direction = [planned.get(key, 0) for key in keys]
    interval = newcombe(k_a, n_a, k_b, n_b, alpha)
    columns |= {
        "rate_a": rate(k_a, n_a),
        "rate_b": rate(k_b, n_b),
        "effect": rate(k_a, n_a) - rate(k_b, n_b),
        "ci_low": interval.low,
        "ci_high": interval.high,
        "direction": [sign or None for sign in direction],
        "p": exact_test(k_a, n_a, k_b, n_b, test, direction),
    }
    return MEASURED.from_columns({field.name: _column(columns[field.name], field.type) for field in MEASURED.arrow})


def _column(values: Any, type: pa.DataType) -> pa.Array:
    return pa.array(values, type, from_pandas=True)  # NaN is null


def _check_known(field: str, found: set[str], known: Sequence[str]) -> None:
    if unknown := sorted(found - set(known)):
        raise BadInput(f"trials.{field}", unknown[0], f"not among {list(known)}", "judge trials with their own study")
