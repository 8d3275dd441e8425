"""The screen's exact probabilities as dose curves, effects and points by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tasks.patching.report.data import CandidatePoint, DoseCurve, FeatureId
from tasks.patching.report.effects import feature_id
from tasks.patching.scenario import INVALID
from tasks.patching.spec import PATCHED_ARMS, Arm
from tasks.patching.tables import probability
from tasks.report.tables import Row

Cells = Mapping[tuple[int, str, str, float], Row]
"""Rows of edited cells by (candidate, prompt, arm, dose)."""


def cells(screen: Iterable[Row]) -> Cells:
    return {(r["candidate"], r["prompt"], r["arm"], r["dose"]): r for r in screen if r["arm"] in PATCHED_ARMS}


def baselines(screen: Iterable[Row], choices: Sequence[str]) -> dict[tuple[str, str], float]:
    """P(choice) without an edit, by (prompt, choice)."""
    plain = [r for r in screen if r["arm"] == "baseline"]
    return {(r["prompt"], c): r[probability(c)] for r in plain for c in choices}


def exact_effects(found: Cells, choices: Sequence[str], arm: Arm = "feature") -> dict[tuple[int, str, str], float]:
    """P(choice; high value) - P(choice; low value) by (candidate, prompt, choice)."""
    effects = {}
    for (candidate, prompt, own_arm, dose), high in found.items():
        low = found.get((candidate, prompt, own_arm, 0.0))
        if own_arm == arm and dose == 1.0 and low is not None:
            for choice in choices:
                effects[candidate, prompt, choice] = high[probability(choice)] - low[probability(choice)]
    return effects


def by_effect(exact: Mapping[tuple[int, str, str], float], candidates: Iterable[Row]) -> list[FeatureId]:
    """Screened candidates, largest exact effect first."""
    size = _largest(exact)
    ids = [feature_id(row) for row in candidates if row["candidate"] in size]
    return sorted(ids, key=lambda id: (-size[id.candidate], id.candidate))


def dose_curves(
    found: Cells,
    plain: Mapping[tuple[str, str], float],
    ids: Sequence[FeatureId],
    prompts: Sequence[str],
    choices: Sequence[str],
) -> list[DoseCurve]:
    """Curves of the given features, feature by feature; features that were not screened are left out."""
    doses = sorted({dose for _, _, _, dose in found})
    curves = []
    for id in ids:
        for prompt in prompts:
            feature = [found.get((id.candidate, prompt, "feature", dose)) for dose in doses]
            random = [found.get((id.candidate, prompt, "random", dose)) for dose in doses]
            if None in feature or len(doses) < 2:
                continue
            curves += [
                DoseCurve(
                    id=id,
                    prompt=prompt,
                    choice=choice,
                    doses=doses,
                    values=[row["value"] for row in feature],
                    feature=[row[probability(choice)] for row in feature],
                    random=[None if row is None else row[probability(choice)] for row in random],
                    baseline=plain.get((prompt, choice)),
                )
                for choice in choices
            ]
    return curves


def candidate_points(
    candidates: Iterable[Row],
    exact: Mapping[tuple[int, str, str], float],
    control: Mapping[tuple[int, str, str], float],
    survivors: set[int],
    discoveries: set[int],
    at_most: int,
) -> list[CandidatePoint]:
    """Candidates to draw: all that were kept, and the largest exact effects (then |d|) up to `at_most`."""
    largest, largest_control = _largest(exact), _largest(control)
    points = []
    for row in candidates:
        number = row["candidate"]
        stage = "discovery" if number in discoveries else "survivor" if number in survivors else "candidate"
        points.append(
            CandidatePoint(
                id=feature_id(row),
                d=row["d"],
                q=row["q"],
                value_low=row["value_low"],
                value_high=row["value_high"],
                exact=largest.get(number),
                exact_control=largest_control.get(number),
                stage=stage,
            )
        )
    points.sort(key=lambda p: (p.stage == "candidate", -(p.exact or 0.0), -abs(p.d), p.id.candidate))
    return sorted(points[:at_most], key=lambda p: p.id.candidate)


def _largest(effects: Mapping[tuple[int, str, str], float]) -> dict[int, float]:
    """By candidate, over prompts and the scenario's choices: what the survivors were chosen by."""
    largest: dict[int, float] = {}
    for (candidate, _, choice), effect in effects.items():
        if choice == INVALID:
            continue
        largest[candidate] = max(largest.get(candidate, 0.0), abs(effect))
    return largest
