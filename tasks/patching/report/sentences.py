"""Findings in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.patching.report.data import Estimate, Finding, KeyNumbers, Screened, Setup
from tasks.report import numbers as fmt


def finding_sentence(finding: Finding, setup: Setup) -> str:
    """What was set, what it moved, by how much, how sure, against what control, and whether it held again."""
    e = finding.estimate
    verb = "raises" if e.effect > 0 else "lowers"
    return (
        f"Setting feature {finding.id.name} to its {setup.high} value instead of its {setup.low} value {verb} the share"
        f" of “{finding.choice}”"
        f" on the “{finding.prompt}” prompt by {fmt.points(e.effect, signed=False)} percentage points"
        f" ({_interval(e, setup)}, {fmt.equals('q', e.q)} in the {finding.family} family;"
        f" {fmt.of(e.a.k, e.a.n)} against {fmt.of(e.b.k, e.b.n)} trials)."
        f"{_prediction(finding)} {_control(finding, setup)} {_confirmation(finding, setup)}"
    )


def _prediction(finding: Finding) -> str:
    return "" if finding.predicted is None else f" The exact screen predicted {fmt.points(finding.predicted)}."


def _control(finding: Finding, setup: Setup) -> str:
    beyond = finding.beyond
    if beyond is None:
        return "It was not compared with a random direction."
    said = f"{fmt.points(beyond.effect)} points, {fmt.level(setup.alpha)} interval"
    said = f"({said} {fmt.interval(beyond.ci_low, beyond.ci_high)}, {fmt.equals('q', beyond.q)})."
    if finding.specific:
        return f"That is more than a random direction does {said}"
    return f"It was not shown to be more than a random direction does {said}"


def _confirmation(finding: Finding, setup: Setup) -> str:
    again = finding.confirmation
    if finding.status == "untested" or again is None:
        return "Not yet tested on held-out seeds."
    chance = fmt.equals("p", again.p) if again.q is None else fmt.equals("q", again.q)
    verdict = "Confirmed" if finding.status == "confirmed" else "Not confirmed"
    return f"{verdict} on held-out seeds: {fmt.points(again.effect)} points ({_interval(again, setup)}, {chance})."


def _interval(e: Estimate, setup: Setup) -> str:
    return f"{fmt.level(setup.alpha)} interval {fmt.interval(e.ci_low, e.ci_high)}"


def headline(findings: Sequence[Finding], numbers: KeyNumbers, screened: Screened, alpha: float) -> str:
    """The answer of the study in one sentence, honest when there is none.

    Counts features, not rows: one feature that moves two choices on two prompts is one feature. A feature with a
    discovery in each family counts in the primary one.
    """
    if not numbers.tests:
        return _nothing_moves(screened)
    primary = [f for f in findings if f.family == "primary"]
    known = {f.id.candidate for f in primary}
    others = [f for f in findings if f.id.candidate not in known]
    if not findings:
        return (
            "No feature was found to change the model’s choice"
            f" ({fmt.some(numbers.primary.tests, 'primary test', 'primary tests')},"
            f" {fmt.count(numbers.secondary.tests)} secondary; false discovery rate {fmt.percent(alpha)}"
            " in each family)."
        )
    nothing = "No feature was found to change the model’s choice as the screen predicted."
    said = _changed(primary, numbers.confirmation_ran) if primary else nothing
    if not others:
        return said
    more = f"{_features(len({f.id for f in others}))}{' more' if primary else ''}"
    return f"{said} {more} passed a secondary test alone{_held(others, numbers.confirmation_ran)}."


def what_to_change(screened: Screened) -> list[str]:
    """What a user can do where the screen kept no feature."""
    moves = (
        f"Lower selection.min_effect ({fmt.points(screened.min_effect, signed=False)} points were asked for) and sample"
        " more trials a value, since a smaller effect needs more to be confirmed."
        if screened.effect
        else "Compare other prompts: nothing that was written into the model reached the choices’ first tokens."
    )
    return [
        moves,
        "Screen more features, at next to no cost: a larger contrast.top_k_per_layer, other saes.layers.",
        "Take groups of prompts that differ more in what decides the choice, or other SAEs.",
    ]


def _nothing_moves(screened: Screened) -> str:
    features = (
        "The one feature screened does not move"
        if screened.candidates == 1
        else (f"None of {fmt.count(screened.candidates)} features screened moves")
    )
    if screened.id is None or screened.effect is None:
        return f"{features} the model’s choice at all, so none was sampled."
    return (
        f"{features} the choice by {fmt.points(screened.min_effect, signed=False)} points, so none was sampled; the"
        f" largest exact effect is that of {screened.id.name}: {fmt.points(screened.effect)} points in"
        f" “{screened.choice}” on the “{screened.prompt}” prompt."
    )


def _changed(found: Sequence[Finding], confirmation_ran: bool) -> str:
    features = {f.id.candidate for f in found}
    confirmed = {f.id.candidate for f in found if f.status == "confirmed"}
    if not confirmation_ran:
        said = f"{_features(len(features))} changed the model’s choice as the screen predicted"
        return f"{said}; not yet tested on held-out seeds."
    if not confirmed:
        return (
            f"{_features(len(features))} seemed to change the model’s choice as the screen predicted,"
            f" but {'it was not' if len(features) == 1 else 'none was'} confirmed on held-out seeds."
        )
    said = f"{_features(len(confirmed))} causally changed the model’s choice as the screen predicted"
    if len(confirmed) == len(features):
        return f"{said}, confirmed on held-out seeds."
    return f"{said}, confirmed on held-out seeds; {_features(len(features) - len(confirmed)).lower()} did not hold."


def _held(others: Sequence[Finding], confirmation_ran: bool) -> str:
    features = len({f.id for f in others})
    confirmed = len({f.id for f in others if f.status == "confirmed"})
    if not confirmation_ran:
        return ", not yet tested on held-out seeds"
    if confirmed in (0, features):
        return f", {'' if confirmed else 'not '}confirmed on held-out seeds"
    return f", {fmt.count(confirmed)} of them confirmed on held-out seeds"


def _features(n: int) -> str:
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
    return f"{words[n] if n < len(words) else fmt.count(n)} feature{'' if n == 1 else 's'}"
