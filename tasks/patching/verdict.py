"""Which features changed behaviour: discoveries, their labels, and their confirmation on held-out seeds.

The rule. Every feature x prompt x contrast x outcome is one test, `invalid` being an outcome and all contrasts
included; q-values are Benjamini-Hochberg over all of them. A discovery is a test of the primary contrast, high
against low value of the same edit, with q <= alpha and |effect| >= min_effect. The other contrasts (against no
edit, against a random direction) say more about a discovery but make none. A discovery is called specific if, on
the same prompt and outcome, one of its values also differs from the same edit along a random direction, in the
direction of the discovery, with q <= alpha.

A discovery is confirmed if trials on held-out seeds show an effect of the same sign with q <= alpha over the
family of all tests that were repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.patching.effects import PRIMARY, measure_effects
from tasks.patching.replication import check_samples, duplicate_alarms
from tasks.patching.scenario import INVALID
from tasks.patching.spec import VerdictParams
from tasks.stats.fdr import Family, benjamini_hochberg

Row = dict[str, Any]

_TEST = ("candidate", "prompt", "contrast", "choice")
_CONFIRMATION = ("n_a", "k_a", "rate_a", "n_b", "k_b", "rate_b", "effect", "ci_low", "ci_high", "p", "q")
STRONGEST = 3

CONFIRM_SCHEMA = pa.schema([("candidate", pa.int32()), ("layer", pa.int32()), ("feature", pa.int32())])


@dataclass(frozen=True)
class Verdict:
    effects: pa.Table
    """`effects.SCHEMA` and q. Of the confirmation phase, only repeated discoveries have a q."""
    verdict: pa.Table
    """A row per discovery: its effect, `specific`, `label`, and `confirmation_*`, `confirmed` (null: not repeated)."""
    confirm: pa.Table
    """Discovered features to repeat, smallest q first."""
    findings: dict[str, Any]


def judge(discovery: pa.Table, confirmation: pa.Table | None, params: VerdictParams) -> Verdict:
    """The verdict on a study's trials. BadInput if they are not independent samples (`check_samples`)."""
    check_samples(discovery, confirmation, params.temperature)
    settings, outcomes = params.settings, [*params.choices, INVALID]
    about = (params.prompts, outcomes, params.low, params.high, params.mode, settings.alpha, settings.test)

    measured = measure_effects(discovery, "discovery", *about)
    family = benjamini_hochberg(_numbers(measured["p"]))
    effects = _with_q(measured, family.q)
    rows = effects.to_pylist()
    found = [row for row in rows if _is_discovery(row, settings.alpha, settings.min_effect)]

    confirmed_family = Family(np.empty(0), 0, 0)
    repeated: dict[tuple, Row] = {}
    if confirmation is not None:
        measured = measure_effects(confirmation, "confirmation", *about)
        discovered = {_key(row) for row in found}
        in_family = np.array([_key(row) in discovered for row in measured.to_pylist()], dtype=bool)
        confirmed_family = benjamini_hochberg(_numbers(measured["p"])[in_family])
        q = np.full(len(in_family), np.nan)
        q[in_family] = confirmed_family.q
        confirmed_effects = _with_q(measured, q)
        repeated = {_key(row): row for row in confirmed_effects.to_pylist() if row["q"] is not None}
        effects = pa.concat_tables([effects, confirmed_effects])

    by_key = {_key(row): row for row in rows}
    verdict = [_verdict_row(row, by_key, repeated.get(_key(row)), params) for row in found]
    features = _best_first(found)
    alarms = [alarm for trials in (discovery, confirmation) if trials is not None for alarm in duplicate_alarms(trials)]
    findings = {
        "alpha": settings.alpha,
        "min_effect": settings.min_effect,
        "test": settings.test,
        "primary_contrast": PRIMARY,
        "tests": family.size,
        "untested": family.untested,
        "discoveries": len(found),
        "features": [row["candidate"] for row in features],
        "confirmation_tests": confirmed_family.size if confirmation is not None else None,
        "confirmed": sum(bool(row["confirmed"]) for row in verdict) if confirmation is not None else None,
        "strongest": [
            {name: row[name] for name in (*_TEST, "layer", "feature", "effect", "ci_low", "ci_high", "p", "q")}
            | {"discovery": row in found, "label": label(row, params.low, params.high)}
            for row in _best_first([r for r in rows if r["contrast"] == PRIMARY and r["q"] is not None])[:STRONGEST]
        ],
        "alarms": alarms,
    }
    first = [{name: row[name] for name in CONFIRM_SCHEMA.names} for row in features]
    return Verdict(
        effects,
        pa.Table.from_pylist(verdict, schema=verdict_schema(effects.schema)),
        pa.Table.from_pylist(first[: params.max_confirmed_features], schema=CONFIRM_SCHEMA),
        findings,
    )


def label(row: Row, low: str, high: str) -> str:
    """Which value moves which behaviour in which direction, on which prompt, against what, and how sure."""
    side, _, against = row["contrast"].partition("_vs_")
    value = {"high": high, "low": low}[side]
    other = {
        "low": f"value {low}",
        "baseline": "no edit",
        "reconstruction": "the SAE's reconstruction without an edit",
        "random": f"value {value} along a random direction",
    }[against]
    behaviour = "invalid answers" if row["choice"] == INVALID else row["choice"]
    verb = "raises" if row["effect"] > 0 else "lowers" if row["effect"] < 0 else "does not change"
    return (
        f"L{row['layer']}/{row['feature']}: value {value} {verb} {behaviour} on prompt {row['prompt']}: "
        f"{row['rate_a']:.0%} ({row['k_a']}/{row['n_a']}) vs {row['rate_b']:.0%} ({row['k_b']}/{row['n_b']}) with "
        f"{other}; {100 * row['effect']:+.0f} points [{100 * row['ci_low']:+.0f}, {100 * row['ci_high']:+.0f}], "
        f"q = {row['q']:.2g}"
    )


def verdict_schema(effects: pa.Schema) -> pa.Schema:
    """Columns of table `verdict`."""
    own = [field for field in effects if field.name != "phase"]
    confirmation = [pa.field(f"confirmation_{name}", effects.field(name).type) for name in _CONFIRMATION]
    return pa.schema([*own, ("specific", pa.bool_()), ("label", pa.string()), *confirmation, ("confirmed", pa.bool_())])


def _is_discovery(row: Row, alpha: float, min_effect: float) -> bool:
    tested = row["contrast"] == PRIMARY and row["q"] is not None
    return tested and row["q"] <= alpha and abs(row["effect"]) >= min_effect


def _verdict_row(row: Row, by_key: dict[tuple, Row], again: Row | None, params: VerdictParams) -> Row:
    alpha = params.settings.alpha
    specific = _is_specific(row, by_key, alpha)
    about_control = {
        True: "; differs from a random direction",
        False: "; not shown to differ from a random direction",
        None: "; not compared with a random direction",
    }[specific]
    own = {name: value for name, value in row.items() if name != "phase"}
    own |= {"specific": specific, "label": label(row, params.low, params.high) + about_control, "confirmed": None}
    if again is not None:
        own |= {f"confirmation_{name}": again[name] for name in _CONFIRMATION}
        own["confirmed"] = again["effect"] * row["effect"] > 0 and again["q"] <= alpha
    return own


def _is_specific(row: Row, by_key: dict[tuple, Row], alpha: float) -> bool | None:
    """None if no random direction was tried."""
    controls = [
        (sign, by_key[(row["candidate"], row["prompt"], contrast, row["choice"])])
        for contrast, sign in (("high_vs_random", 1), ("low_vs_random", -1))
    ]
    tested = [(sign, control) for sign, control in controls if control["q"] is not None]
    if not tested:
        return None
    return any(control["q"] <= alpha and sign * control["effect"] * row["effect"] > 0 for sign, control in tested)


def _best_first(rows: list[Row]) -> list[Row]:
    """The best test of each feature: smallest q, then p, then largest effect."""
    best: dict[int, Row] = {}
    for row in sorted(rows, key=lambda r: (r["q"], r["p"], -abs(r["effect"]), r["candidate"])):
        best.setdefault(row["candidate"], row)
    return list(best.values())


def _key(row: Row) -> tuple:
    return tuple(row[name] for name in _TEST)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Float64 with null as NaN."""
    return pc.fill_null(column, float("nan")).to_numpy()


def _with_q(measured: pa.Table, q: np.ndarray) -> pa.Table:
    return measured.append_column("q", pa.array(q, pa.float64(), from_pandas=True))
