"""Which features changed behaviour: discoveries, their labels, and their confirmation on held-out seeds.

The rule. Every feature x prompt x contrast x outcome is one test, `invalid` being an outcome; `families` says which
of two families it belongs to, and q-values are Benjamini-Hochberg within the family. A discovery of either family is
a test of high against low value of the same edit with q <= alpha and |effect| >= min_effect; one of the primary
family has the direction that the screen predicted, since its test is one-sided. The contrasts against no edit say
more about a discovery but make none. A discovery is called specific if its effect exceeds that of a random direction
on the same prompt and outcome (`specificity`) with q <= alpha.

A discovery is confirmed if held-out seeds show it again: one-sided in its own direction, which is planned by then,
with q <= alpha over all repeated discoveries of its family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tasks.patching.effects import Key, key_of, measure_effects
from tasks.patching.families import predictions, with_families
from tasks.patching.labels import contradictions, label, label_of_control
from tasks.patching.replication import check_samples, duplicate_alarms
from tasks.patching.scenario import INVALID
from tasks.patching.spec import FAMILIES, HIGH_VS_LOW, Family, Phase, VerdictParams
from tasks.patching.specificity import compare_with_random
from tasks.patching.tables import CONFIRM, EFFECTS, REPEATED, VERDICT
from tasks.stats.power import detectable_difference

Row = dict[str, Any]

_CONTROL = {
    "effect": "control_effect",
    "beyond": "beyond",
    "beyond_ci_low": "beyond_ci_low",
    "beyond_ci_high": "beyond_ci_high",
    "p": "beyond_p",
    "q": "beyond_q",
}
_STRONGEST = (
    "candidate", "layer", "feature", "prompt", "contrast", "choice", "family", "predicted",
    "effect", "ci_low", "ci_high", "p", "q",
)  # fmt: skip
STRONGEST = 3
POWER = 0.8


@dataclass(frozen=True)
class Verdict:
    effects: pa.Table
    """Table `EFFECTS`."""
    controls: pa.Table
    """Table `CONTROLS`: every high-against-low test of the discovery phase against its random direction."""
    verdict: pa.Table
    """Table `VERDICT`."""
    confirm: pa.Table
    """Table `CONFIRM`."""
    findings: dict[str, Any]


def judge(discovery: pa.Table, confirmation: pa.Table | None, survivors: pa.Table, params: VerdictParams) -> Verdict:
    """The verdict on a study's trials. BadInput if they are not independent samples (`check_samples`)."""
    check_samples(discovery, confirmation, params.temperature)
    settings = params.settings
    predicted = predictions(survivors, discovery, params.prompts, params.choices)

    effects = _measure(discovery, "discovery", params, predicted)
    effects = with_families(effects, dict.fromkeys(predicted, "primary"), predicted, other="secondary")
    rows = effects.to_pylist()
    found = [row for row in rows if _is_discovery(row, settings.alpha, settings.min_effect)]
    controls = compare_with_random(effects, discovery, params.low, params.high, settings.alpha)

    repeated: dict[Key, Row] = {}
    if confirmation is not None:
        again = _measure(confirmation, "confirmation", params, {key_of(row): row["effect"] for row in found})
        again = with_families(again, {key_of(row): row["family"] for row in found}, predicted)
        repeated = {key_of(row): row for row in again.to_pylist() if row["q"] is not None}
        effects = pa.concat_tables([effects, again])

    control_of = {(row["candidate"], row["prompt"], row["choice"]): row for row in controls.to_pylist()}
    verdict = [_verdict_row(row, control_of, repeated.get(key_of(row)), params) for row in found]
    features = _best_first(found)
    tested = [row for row in rows if row["q"] is not None]
    primary = [row for row in tested if row["family"] == "primary"]
    families = {name: _family(name, rows, verdict, confirmation is not None) for name in FAMILIES}
    findings = {
        "alpha": settings.alpha,
        "min_effect": settings.min_effect,
        "test": settings.test,
        "contrast": HIGH_VS_LOW,
        "families": families,
        "detectable": _detectable(primary, settings.alpha),
        "features": [row["candidate"] for row in features],
        "strongest": [
            {name: row[name] for name in _STRONGEST}
            | {"discovery": row in found, "label": label(row, params.low, params.high)}
            for row in _best_first([row for row in tested if row["contrast"] == HIGH_VS_LOW])[:STRONGEST]
        ],
        "alarms": [
            *contradictions(primary),
            *duplicate_alarms(discovery),
            *(duplicate_alarms(confirmation) if confirmation is not None else []),
        ],
    }
    repeated_next = [
        {name: row[name] for name in ("candidate", "layer", "feature")}
        | {"prompts": sorted({other["prompt"] for other in found if other["candidate"] == row["candidate"]})}
        for row in features
    ]
    return Verdict(
        EFFECTS.checked(effects),
        controls,
        VERDICT.from_rows(verdict),
        CONFIRM.from_rows(repeated_next[: params.max_confirmed_features]),
        findings,
    )


def _is_discovery(row: Row, alpha: float, min_effect: float) -> bool:
    tested = row["contrast"] == HIGH_VS_LOW and row["q"] is not None
    as_planned = row["direction"] is None or row["direction"] * row["effect"] > 0
    return tested and as_planned and row["q"] <= alpha and abs(row["effect"]) >= min_effect


def _measure(trials: pa.Table, phase: Phase, params: VerdictParams, planned: Mapping[Key, float]) -> pa.Table:
    """The effects of one phase; the sign of a `planned` effect is the direction of its test."""
    directions = {key: 1 if effect > 0 else -1 for key, effect in planned.items()}
    outcomes = [*params.choices, INVALID]
    about = (params.prompts, outcomes, params.low, params.high, params.mode, params.settings.alpha)
    return measure_effects(trials, phase, *about, params.settings.test, directions)


def _verdict_row(row: Row, control_of: Mapping[tuple, Row], again: Row | None, params: VerdictParams) -> Row:
    alpha = params.settings.alpha
    control = control_of[row["candidate"], row["prompt"], row["choice"]]
    specific = None if control["q"] is None else control["q"] <= alpha
    said = f"{label(row, params.low, params.high)}; {label_of_control(control, specific)}"
    own = {name: value for name, value in row.items() if name != "phase"}
    own |= {name: control[source] for source, name in _CONTROL.items()}
    own |= {"specific": specific, "label": said, "confirmed": None}
    if again is not None:
        own |= {f"confirmation_{name}": again[name] for name in REPEATED}
        own["confirmed"] = again["effect"] * row["effect"] > 0 and again["q"] <= alpha
    return own


def _family(name: Family, rows: Sequence[Row], verdict: Sequence[Row], confirmation_ran: bool) -> Row:
    """The size of a family, and what came of it; `confirm*` are None if nothing was repeated."""
    members = [row for row in rows if row["family"] == name]
    found = [row for row in verdict if row["family"] == name]
    repeated = [row for row in found if row["confirmed"] is not None]
    return {
        "tests": sum(row["q"] is not None for row in members),
        "untested": sum(row["q"] is None for row in members),
        "discoveries": len(found),
        "features": len({row["candidate"] for row in found}),
        "confirmation_tests": len(repeated) if confirmation_ran else None,
        "confirmed": sum(row["confirmed"] for row in repeated) if confirmation_ran else None,
    }


def _detectable(primary: Sequence[Row], alpha: float) -> Row | None:
    """What the trials can find: with power `POWER`, even if no other feature of the primary family has an effect."""
    if not primary:
        return None
    trials = min(min(row["n_a"], row["n_b"]) for row in primary)
    difference = detectable_difference(trials, alpha / len(primary), POWER)
    return {"trials": trials, "power": POWER, "difference": difference}


def _best_first(rows: list[Row]) -> list[Row]:
    """The best test of each feature: primary ones first, then smallest q, then p, then largest effect."""
    best: dict[int, Row] = {}
    order = ("family", "q", "p")
    for row in sorted(rows, key=lambda r: (*(r[name] for name in order), -abs(r["effect"]), r["candidate"])):
        best.setdefault(row["candidate"], row)
    return list(best.values())
