"""What weakens a study's conclusions, found in its data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from tasks.artifacts.shard import Shard
from tasks.patching.report.data import Agreement, ChoiceCell, Detectable, EffectRow, FeatureId, Finding, LayerRow
from tasks.patching.report.figures.outcomes import describe_cell
from tasks.patching.scenario import INVALID
from tasks.patching.tables import TRIALS
from tasks.report import numbers as fmt
from tasks.report.records import Caution, note, warning
from tasks.report.tables import rows, tables

MAX_INVALID = 0.2
MAX_INVALID_SHIFT = 0.15
MIN_VARIANCE_EXPLAINED = 0.6
MAX_DEAD_SHARE = 0.5
MAX_RELATIVE_DELTA = 0.5
MIN_TRIALS = 20
MAX_DISAGREEMENT = 0.25
EXTREME_RATE = 0.02


def cautions(
    alarms: Sequence[Mapping[str, str]],
    relative_delta: Mapping[int, float],
    cells: Sequence[ChoiceCell],
    effects: Sequence[EffectRow],
    findings: Sequence[Finding],
    layers: Sequence[LayerRow],
    agreement: Agreement | None,
    confirmation_ran: bool,
    detectable: Detectable | None,
    exact: Mapping[FeatureId, float],
) -> list[Caution]:
    """All that apply, warnings first.

    `alarms`: of the verdict, with `code` and `text`. `relative_delta`: of `relative_deltas`. `exact`: the largest exact
    effect of each sampled feature.
    """
    found = [
        *(warning(alarm["code"].replace("_", "-"), alarm["text"]) for alarm in alarms),
        *_invalid(cells, effects, findings),
        *_control(findings),
        *_saes(layers),
        *_size_of_edit(relative_delta, findings),
        *_sampling(effects, findings, agreement, confirmation_ran),
        *_power(detectable, exact, findings),
    ]
    return sorted(found, key=lambda c: c.severity != "warning")


def _invalid(
    cells: Sequence[ChoiceCell], effects: Sequence[EffectRow], findings: Sequence[Finding]
) -> Iterable[Caution]:
    shares = [(cell, cell.counts.get(INVALID, 0) / cell.n) for cell in cells if cell.n and cell.layer is None]
    high = [f"{describe_cell(cell)} ({fmt.percent(share)})" for cell, share in shares if share > MAX_INVALID]
    if high:
        yield warning(
            "invalid-share",
            f"More than {fmt.percent(MAX_INVALID)} of the answers are invalid here: {fmt.listed(high)}."
            " The choices that are counted may be a special part of what the model would do.",
        )
    found = {(f.id, f.prompt) for f in findings}
    shifted = sorted(
        {
            f"{row.id.name} on “{row.prompt}” ({fmt.points(row.estimate.effect)} points)"
            for row in effects
            if row.choice == INVALID and (row.id, row.prompt) in found and abs(row.estimate.effect) > MAX_INVALID_SHIFT
        }
    )
    if shifted:
        yield warning(
            "invalid-shift",
            f"A discovered feature also changes how many answers are invalid: {fmt.listed(shifted)}. Part of its effect"
            " may be that the model stops answering.",
        )


def _control(findings: Sequence[Finding]) -> Iterable[Caution]:
    specific = {(f.id, f.prompt) for f in findings if f.specific is not False}
    unspecific = [f"{id.name} on “{prompt}”" for id, prompt in _pairs(findings) if (id, prompt) not in specific]
    if unspecific:
        yield warning(
            "not-specific",
            "Not shown to have a larger effect than the same step in a random direction:"
            f" {fmt.listed(unspecific)}. The choice may move because the model is disturbed, not because of what the"
            " feature stands for.",
        )


def _pairs(findings: Sequence[Finding]) -> list[tuple[FeatureId, str]]:
    return list(dict.fromkeys((f.id, f.prompt) for f in findings))


def _saes(layers: Sequence[LayerRow]) -> Iterable[Caution]:
    weak = [
        f"layer {r.layer} ({fmt.percent(r.variance_explained)})"
        for r in layers
        if r.variance_explained is not None and r.variance_explained < MIN_VARIANCE_EXPLAINED
    ]
    if weak:
        yield warning(
            "variance-explained",
            f"The SAE explains less than {fmt.percent(MIN_VARIANCE_EXPLAINED)} of the variance in {fmt.listed(weak)}:"
            " features there may miss what matters.",
        )
    dead = [
        f"layer {r.layer} ({fmt.percent(r.dead_share)})"
        for r in layers
        if r.dead_share is not None and r.dead_share > MAX_DEAD_SHARE
    ]
    if dead:
        yield note("dead-features", f"Most features of the SAE never fire in {fmt.listed(dead)}.")


def _size_of_edit(relative_delta: Mapping[int, float], findings: Sequence[Finding]) -> Iterable[Caution]:
    names = {f.id.candidate: f.id.name for f in findings}
    far = [
        f"{names[candidate]} ({fmt.percent(delta)})"
        for candidate, delta in sorted(relative_delta.items())
        if candidate in names and delta > MAX_RELATIVE_DELTA
    ]
    if far:
        yield warning(
            "large-edits",
            f"The edit's step is long against the residual vector for {fmt.listed(far)}: the model may be far from any"
            " state it knows.",
        )


def _sampling(
    effects: Sequence[EffectRow], findings: Sequence[Finding], agreement: Agreement | None, confirmation_ran: bool
) -> Iterable[Caution]:
    if findings and not confirmation_ran:
        yield warning("no-confirmation", "The discoveries were not sampled again on held-out seeds.")
    smallest = min((min(r.estimate.a.n, r.estimate.b.n) for r in effects), default=MIN_TRIALS)
    if smallest < MIN_TRIALS:
        yield note("few-trials", f"Some conditions have only {smallest} trials: small effects cannot be seen.")
    if agreement and agreement.n - agreement.inside > MAX_DISAGREEMENT * agreement.n:
        yield note(
            "screen-disagrees",
            f"In {fmt.of(agreement.n - agreement.inside, agreement.n)} comparisons the exact first-token effect lies"
            " outside the sampled effect's interval: the first token alone does not decide the answer.",
        )
    extreme = sorted(
        {
            f"“{r.choice}” on “{r.prompt}” ({fmt.percent(r.baseline.rate)})"
            for r in effects
            if r.choice != INVALID
            and r.baseline is not None
            and r.baseline.rate is not None
            and not EXTREME_RATE <= r.baseline.rate <= 1 - EXTREME_RATE
        }
    )
    if extreme:
        yield note(
            "ceiling",
            f"Without an edit the choice is all but fixed, so it can move one way only: {fmt.listed(extreme)}.",
        )


def _power(
    detectable: Detectable | None, exact: Mapping[FeatureId, float], findings: Sequence[Finding]
) -> Iterable[Caution]:
    found = {f.id for f in findings}
    missed = [id for id in exact if id not in found]
    if detectable is None or not missed:
        return
    trials = f"{fmt.count(detectable.trials)} trials a value"
    if detectable.difference is None:
        yield note("power", f"{trials} cannot show that any single feature has an effect.")
        return
    weak = [f"{id.name} ({fmt.points(exact[id])})" for id in missed if abs(exact[id]) < detectable.difference]
    if weak:
        yield note(
            "power",
            f"Sampled, not discovered, and of an exact effect that {trials} miss in more than"
            f" {fmt.percent(1 - detectable.power)} of studies, being smaller than"
            f" {fmt.points(detectable.difference, signed=False)} points: {fmt.listed(weak)}.",
        )


def relative_deltas(trials: Iterable[Shard]) -> dict[int, float]:
    """Median length of a feature edit's step against the residual vector, by candidate."""
    parts = [
        table.filter(pc.equal(table["arm"], "feature"))
        for table in tables(trials, TRIALS, ["arm", "candidate", "relative_delta"])
    ]
    if not parts:
        return {}
    grouped = pa.concat_tables(parts).group_by("candidate").aggregate([("relative_delta", "approximate_median")])
    return {
        row["candidate"]: row["relative_delta_approximate_median"]
        for row in rows(grouped)
        if row["relative_delta_approximate_median"] is not None
    }
