"""Parts that the figures of measured effects share: hover text, error bars, axis ranges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tasks.patching.report.data import EffectRow, Estimate
from tasks.report import numbers as fmt
from tasks.report.figures import Spec, selected


def for_choice(choice: str, default: str) -> Spec:
    """Properties of a trace that belongs to one choice."""
    return selected("choice", choice, default)


def describe(row: EffectRow, e: Estimate, alpha: float) -> list[str]:
    """Hover lines of one estimate: feature, effect, interval, counts, q."""
    lines = [
        f"{row.id.name}, {row.prompt} prompt, {row.choice}",
        f"effect {fmt.points(e.effect)} points, {fmt.level(alpha)} interval {fmt.interval(e.ci_low, e.ci_high)}",
        f"{fmt.of(e.a.k, e.a.n)} against {fmt.of(e.b.k, e.b.n)} trials",
    ]
    return lines + ([f"{fmt.equals('q', e.q)} in the {row.family} family"] if e.q is not None else [])


def error_bars(estimates: Sequence[Estimate], colour: str, thickness: float) -> Spec:
    """Asymmetric intervals, in percentage points."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [100 * (e.ci_high - e.effect) for e in estimates],
        "arrayminus": [100 * (e.effect - e.ci_low) for e in estimates],
        "color": colour,
        "thickness": thickness,
        "width": 0,
    }


def span(estimates: Iterable[Estimate], more: Sequence[float] = ()) -> list[float]:
    """Axis range in points that holds every interval, zero, `more` points and a margin."""
    ends = [100 * x for e in estimates for x in (e.ci_low, e.ci_high)] + [0.0, *more]
    pad = max(0.06 * (max(ends) - min(ends)), 2.0)
    return [min(ends) - pad, max(ends) + pad]


def tick_step(length: float) -> int:
    """A round step that cuts an axis of so many points into at most ten."""
    return next((step for step in (1, 2, 5, 10, 20) if length <= 10 * step), 50)
