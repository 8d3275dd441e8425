"""The two families of tests, and what the exact screen predicts.

The screen reads the choice from the first token's probabilities and draws nothing at random, so what it points at is
not chosen by the sampled answers: it costs no multiplicity. The primary family holds one test a feature: the prompt,
choice and direction of its largest exact effect, one-sided, since an effect in the other direction would contradict
the prediction and is no discovery, however large (Ruxton and Neuhäuser 2010, Methods in Ecology and Evolution 1:114,
on when this is right). Every other test of the study is secondary and two-sided. Each family has its own
false discovery rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import BadInput
from tasks.patching.effects import Key, edited_features, key_of
from tasks.patching.spec import FAMILIES, HIGH_VS_LOW, Family
from tasks.stats.fdr import benjamini_hochberg


def predictions(
    survivors: pa.Table, trials: pa.Table, prompts: Sequence[str], choices: Sequence[str]
) -> dict[Key, float]:
    """The primary test of each survivor and its exact effect; none for a survivor that moves nothing at all.

    BadInput if the survivors are not those of the trials.
    """
    rows = survivors.to_pylist()
    _check_known(
        "candidates", [feature.candidate for feature in edited_features(trials)], [r["candidate"] for r in rows]
    )
    named = [row for row in rows if row["effect_choice"] is not None]
    _check_known("effect_prompt", [row["effect_prompt"] for row in named], prompts)
    _check_known("effect_choice", [row["effect_choice"] for row in named], choices)
    return {(r["candidate"], r["effect_prompt"], HIGH_VS_LOW, r["effect_choice"]): r["effect"] for r in named}


def with_families(
    measured: pa.Table,
    family_of: Mapping[Key, Family],
    predicted: Mapping[Key, float],
    other: Family | None = None,
) -> pa.Table:
    """`measured` with columns family (`other` where `family_of` says nothing), predicted, and q.

    `q` is Benjamini-Hochberg within the family; a test of no family has none.
    """
    keys = [key_of(row) for row in measured.to_pylist()]
    family = pa.array([family_of.get(key, other) for key in keys], pa.string())
    measured = measured.append_column("family", family)
    measured = measured.append_column("predicted", pa.array([predicted.get(key) for key in keys], pa.float64()))
    return measured.append_column("q", q_values(measured["p"], family))


def q_values(p: pa.ChunkedArray, family: pa.Array | pa.ChunkedArray) -> pa.Array:
    """q of each test in its own family; null where p or the family is."""
    values = pc.fill_null(p, float("nan")).to_numpy(zero_copy_only=False)
    q = np.full(len(values), np.nan)
    for name in FAMILIES:
        members = pc.fill_null(pc.equal(family, name), False).to_numpy(zero_copy_only=False)
        q[members] = benjamini_hochberg(values[members]).q
    return pa.array(q, pa.float64(), from_pandas=True)


def _check_known(field: str, named: Sequence[Any], known: Sequence[Any]) -> None:
    if unknown := [name for name in named if name not in known]:
        remedy = "judge trials with the survivors of their own study"
        raise BadInput(f"survivors.{field}", unknown[0], f"not among {list(known)}", remedy)
