"""Findings in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.report import numbers as fmt
from tasks.report.patching.data import Estimate, Finding, KeyNumbers, Setup


def finding_sentence(finding: Finding, setup: Setup) -> str:
    """What was set, what it moved, by how much, how sure, against what control, and whether it held again."""
    e = finding.estimate
    verb = "raises" if e.effect > 0 else "lowers"
    return (
        f"Setting feature {finding.id.name} to its {setup.high} value instead of its {setup.low} value {verb} the share"
        f" of “{finding.choice}”"
        f" on the “{finding.prompt}” prompt by {fmt.points(e.effect, signed=False)} percentage points"
        f" ({_interval(e, setup)}, {fmt.equals('q', e.q)};"
        f" {fmt.of(e.a.k, e.a.n)} against {fmt.of(e.b.k, e.b.n)} trials)."
        f" {_CONTROL[finding.specific]} {_confirmation(finding, setup)}"
    )


_CONTROL = {
    True: "It differs from a random direction.",
    False: "It was not shown to differ from a random direction.",
    None: "It was not compared with a random direction.",
}


def _confirmation(finding: Finding, setup: Setup) -> str:
    again = finding.confirmation
    if finding.status == "untested" or again is None:
        return "Not yet tested on held-out seeds."
    chance = fmt.equals("p", again.p) if again.q is None else fmt.equals("q", again.q)
    verdict = "Confirmed" if finding.status == "confirmed" else "Not confirmed"
    return f"{verdict} on held-out seeds: {fmt.points(again.effect)} points ({_interval(again, setup)}, {chance})."


def _interval(e: Estimate, setup: Setup) -> str:
    return f"{fmt.level(setup.alpha)} interval {fmt.interval(e.ci_low, e.ci_high)}"


def headline(findings: Sequence[Finding], numbers: KeyNumbers, alpha: float) -> str:
    """The answer of the study in one sentence, honest when there is none.

    Counts features, not rows: one feature that moves two choices on two prompts is one feature.
    """
    features = {f.id.candidate for f in findings}
    confirmed = {f.id.candidate for f in findings if f.status == "confirmed"}
    if not numbers.tests:
        return "No feature was sampled, so this study shows no causal effect."
    if not features:
        return (
            "No feature was found to change the model’s choice"
            f" ({fmt.count(numbers.tests)} tests, false discovery rate {fmt.percent(alpha)})."
        )
    if not numbers.confirmation_ran:
        return f"{_features(len(features))} changed the model’s choice; not yet tested on held-out seeds."
    if not confirmed:
        return (
            f"{_features(len(features))} seemed to change the model’s choice,"
            f" but {'it was' if len(features) == 1 else 'none was'}"
            f" {'not ' if len(features) == 1 else ''}confirmed on held-out seeds."
        )
    if len(confirmed) == len(features):
        return f"{_features(len(confirmed))} causally changed the model’s choice, confirmed on held-out seeds."
    return (
        f"{_features(len(confirmed))} causally changed the model’s choice, confirmed on held-out seeds;"
        f" {_features(len(features) - len(confirmed)).lower()} did not hold."
    )


def _features(n: int) -> str:
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
    return f"{words[n] if n < len(words) else fmt.count(n)} feature{'' if n == 1 else 's'}"
