"""Measured effects: the study's `effects` and `verdict` tables as estimates, findings and rows to show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from tasks.report.patching.data import Agreement, EffectRow, Estimate, FeatureId, Finding, Rate, Setup, Status
from tasks.report.patching.sentences import finding_sentence
from tasks.report.tables import Row
from tasks.stats.intervals import newcombe

PRIMARY = "high_vs_low"
"""The one contrast in which the verdict makes discoveries."""
_SHOWN = (PRIMARY, "high_vs_random", "low_vs_random")
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


def index(effects: Iterable[Row]) -> dict[Key, Estimate]:
    """Estimates of the contrasts that a report shows, by key; rows without an effect (an empty cell) are left out."""
    return {
        Key(r["phase"], r["candidate"], r["prompt"], r["contrast"], r["choice"]): Estimate(
            effect=r["effect"],
            ci_low=r["ci_low"],
            ci_high=r["ci_high"],
            a=Rate(n=r["n_a"], k=r["k_a"]),
            b=Rate(n=r["n_b"], k=r["k_b"]),
            p=r["p"],
            q=r["q"],
        )
        for r in effects
        if r["effect"] is not None and r["contrast"] in _SHOWN
    }


def control_of(estimates: Mapping[Key, Estimate], key: Key, alpha: float) -> Estimate | None:
    """High against low value along the random direction, on the prompt and choice of `key`; None if not sampled.

    The contrasts against the random direction hold its counts on side b. Newcombe's interval, no test.
    """
    high, low = (estimates.get(key._replace(contrast=f"{side}_vs_random")) for side in ("high", "low"))
    if not (high and low):
        return None
    a, b = high.b, low.b
    interval = newcombe(a.k, a.n, b.k, b.n, alpha)
    return Estimate(effect=a.k / a.n - b.k / b.n, ci_low=float(interval.low), ci_high=float(interval.high), a=a, b=b)


def findings(verdict: Iterable[Row], estimates: Mapping[Key, Estimate], setup: Setup) -> list[Finding]:
    """All discovered contrasts: confirmed ones first, then by size."""
    found = [_finding(row, estimates, setup) for row in verdict]
    order = {choice: i for i, choice in enumerate(setup.choices)}
    return sorted(
        found,
        key=lambda f: (
            _STATUS_ORDER[f.status],
            -abs(f.estimate.effect),
            f.id.layer,
            f.id.feature,
            f.prompt,
            f.contrast,
            order[f.choice],
        ),
    )


def _finding(row: Row, estimates: Mapping[Key, Estimate], setup: Setup) -> Finding:
    id = feature_id(row)
    key = Key("discovery", id.candidate, row["prompt"], row["contrast"], row["choice"])
    confirmation = estimates.get(key._replace(phase="confirmation"))
    finding = Finding(
        id=id,
        prompt=key.prompt,
        contrast=key.contrast,
        choice=key.choice,
        label=row["label"],
        estimate=estimates[key],
        control=control_of(estimates, key, setup.alpha),
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
    estimates: Mapping[Key, Estimate],
    ids: Mapping[int, FeatureId],
    found: Iterable[Finding],
    exact: Mapping[tuple[int, str, str], float],
    baselines: Mapping[tuple[str, str], Rate],
    alpha: float,
) -> list[EffectRow]:
    """High against low value of every sampled feature, prompt and choice, in the order of the table."""
    status = {(f.id.candidate, f.prompt, f.choice): f.status for f in found}
    return [
        EffectRow(
            id=ids[key.candidate],
            prompt=key.prompt,
            choice=key.choice,
            estimate=estimate,
            control=control_of(estimates, key, alpha),
            confirmation=estimates.get(key._replace(phase="confirmation")),
            exact=exact.get((key.candidate, key.prompt, key.choice)),
            baseline=baselines.get((key.prompt, key.choice)),
            status=status.get((key.candidate, key.prompt, key.choice)),
        )
        for key, estimate in estimates.items()
        if key.phase == "discovery" and key.contrast == PRIMARY
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
