"""Measured effects: the study's `effects` and `verdict` tables as estimates, findings and rows to show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from tasks.patching.report.data import (
    Agreement,
    Beyond,
    EffectRow,
    Estimate,
    FeatureId,
    Finding,
    Rate,
    Setup,
    Status,
)
from tasks.patching.report.sentences import finding_sentence
from tasks.patching.spec import HIGH_VS_LOW, Family
from tasks.report.tables import Row

_STATUS_ORDER: Mapping[Status, int] = {"confirmed": 0, "untested": 1, "unconfirmed": 2}


class Key(NamedTuple):
    """What one estimate is about."""

    phase: str
    candidate: int
    prompt: str
    contrast: str
    choice: str


def feature_id(row: Row) -> FeatureId:
    return FeatureId(candidate=row["candidate"], layer=row["layer"], feature=row["feature"])


class Measured(NamedTuple):
    """What was measured of the contrast that a report shows, in the order of the tables."""

    estimates: Mapping[Key, Estimate]
    controls: Mapping[Key, Estimate]
    """The same difference along the random direction, discovery phase."""
    families: Mapping[Key, Family]
    """Of the discovery phase."""


def measured(effects: Iterable[Row], controls: Iterable[Row]) -> Measured:
    """From the verdict's tables `effects` and `controls`; rows without an effect (an empty cell) are left out."""
    rows = [r for r in effects if r["effect"] is not None and r["contrast"] == HIGH_VS_LOW]
    random = [r for r in controls if r["effect"] is not None]
    return Measured(
        {_key(r, r["phase"]): _estimate(r, p=r["p"], q=r["q"]) for r in rows},
        {_key(r, "discovery"): _estimate(r) for r in random},
        {_key(r, "discovery"): r["family"] for r in rows if r["phase"] == "discovery"},
    )


def _key(row: Row, phase: str) -> Key:
    return Key(phase, row["candidate"], row["prompt"], HIGH_VS_LOW, row["choice"])


def _estimate(row: Row, **chances: float | None) -> Estimate:
    return Estimate(
        effect=row["effect"],
        ci_low=row["ci_low"],
        ci_high=row["ci_high"],
        a=Rate(n=row["n_a"], k=row["k_a"]),
        b=Rate(n=row["n_b"], k=row["k_b"]),
        **chances,
    )


def findings(verdict: Iterable[Row], known: Measured, setup: Setup) -> list[Finding]:
    """All discovered contrasts: confirmed ones first, then those that the screen predicted, then by size."""
    found = [_finding(row, known, setup) for row in verdict]
    order = {choice: i for i, choice in enumerate(setup.choices)}
    return sorted(
        found,
        key=lambda f: (
            _STATUS_ORDER[f.status],
            f.family != "primary",
            -abs(f.estimate.effect),
            f.id.layer,
            f.id.feature,
            f.prompt,
            f.contrast,
            order[f.choice],
        ),
    )


def _finding(row: Row, known: Measured, setup: Setup) -> Finding:
    key = _key(row, "discovery")
    confirmation = known.estimates.get(key._replace(phase="confirmation"))
    beyond = None
    if row["beyond_q"] is not None:
        interval = {"ci_low": row["beyond_ci_low"], "ci_high": row["beyond_ci_high"]}
        beyond = Beyond(effect=row["beyond"], **interval, q=row["beyond_q"])
    finding = Finding(
        id=feature_id(row),
        prompt=key.prompt,
        contrast=key.contrast,
        choice=key.choice,
        family=row["family"],
        predicted=row["predicted"],
        label=row["label"],
        estimate=known.estimates[key],
        control=known.controls.get(key),
        beyond=beyond,
        confirmation=confirmation,
        specific=row["specific"],
        status=_status(row["confirmed"], confirmation),
        sentence="",
    )
    return finding.model_copy(update={"sentence": finding_sentence(finding, setup)})


def strongest(found: Iterable[Finding]) -> list[Finding]:
    """The first finding of each feature."""
    best: dict[int, Finding] = {}
    for finding in found:
        best.setdefault(finding.id.candidate, finding)
    return list(best.values())


def effect_rows(
    known: Measured,
    ids: Mapping[int, FeatureId],
    found: Iterable[Finding],
    exact: Mapping[tuple[int, str, str], float],
    baselines: Mapping[tuple[str, str], Rate],
) -> list[EffectRow]:
    """High against low value of every sampled feature, prompt and choice, in the order of the table."""
    status = {(f.id.candidate, f.prompt, f.choice): f.status for f in found}
    return [
        EffectRow(
            id=ids[key.candidate],
            prompt=key.prompt,
            choice=key.choice,
            family=known.families[key],
            estimate=estimate,
            control=known.controls.get(key),
            confirmation=known.estimates.get(key._replace(phase="confirmation")),
            exact=exact.get((key.candidate, key.prompt, key.choice)),
            baseline=baselines.get((key.prompt, key.choice)),
            status=status.get((key.candidate, key.prompt, key.choice)),
        )
        for key, estimate in known.estimates.items()
        if key.phase == "discovery"
    ]


def strongest_effects(rows: Sequence[EffectRow], features: int) -> list[EffectRow]:
    """The rows of so many features, in the same order: those with discoveries, then those with the largest effects."""
    rank: dict[FeatureId, tuple[bool, float]] = {}
    for row in rows:
        rank[row.id] = max(rank.get(row.id, (False, 0.0)), (row.status is not None, abs(row.estimate.effect)))
    order = sorted(rank, key=lambda id: (-rank[id][0], -rank[id][1], id.candidate))
    kept = set(order[:features])
    return [row for row in rows if row.id in kept]


def agreement(rows: Iterable[EffectRow]) -> Agreement | None:
    """Sampled against exact effects; None if no feature was both screened and sampled."""
    compared = [r for r in rows if r.exact is not None]
    if not compared:
        return None
    return Agreement(
        n=len(compared),
        inside=sum(r.estimate.ci_low <= r.exact <= r.estimate.ci_high for r in compared),
        median_difference=median(abs(r.estimate.effect - r.exact) for r in compared),
    )


def _status(confirmed: bool | None, confirmation: Estimate | None) -> Status:
    if confirmation is None or confirmed is None:
        return "untested"
    return "confirmed" if confirmed else "unconfirmed"
