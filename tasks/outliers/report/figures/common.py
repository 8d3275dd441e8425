"""Parts that the figures of outliers share: variants, rounding, log axes, marks of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tasks.outliers.spec import Variant
from tasks.report import numbers as fmt
from tasks.report.figures import Spec, axis, selected

POSITIONS = "positions"
VARIANT_NAMES: dict[Variant, str] = {"all": "all positions", "without_first": "without the first"}
KINDS = {
    "attn": ("into attention", "var(--series0)", "circle"),
    "mlp": ("into the FFN", "var(--series1)", "diamond"),
    "both": ("into attention and FFN", "var(--series2)", "square"),
    "resid": ("out of the block", "var(--series3)", "triangle-up"),
}
"""Name, colour and symbol of each kind of point."""


def of_variant(variant: Variant, default: Variant, hovertemplate: str = "%{text}<extra></extra>") -> Spec:
    """Properties of a trace that belongs to one variant."""
    return selected(POSITIONS, VARIANT_NAMES[variant], VARIANT_NAMES[default], hovertemplate)


def short(x: float | None, digits: int = 3) -> float | None:
    """So many significant figures: what a plot needs, in few characters of the page."""
    return None if x is None or not math.isfinite(x) else float(f"{x:.{digits}g}")


def positive(x: float | None) -> float | None:
    """What a log axis can show."""
    return x if x is not None and x > 0 and math.isfinite(x) else None


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`: 1, 10 ... or 1, 3, 10 ... or 1, 2, 5 ..., or evenly spaced ones."""
    if not (0 < low <= high):
        return []
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        found = [s * 10.0**e for e in decades for s in steps if low * 0.999 <= s * 10.0**e <= high * 1.001]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 9)]
    return _even_ticks(low, high)


def _even_ticks(low: float, high: float) -> list[float]:
    """Multiples of a round step, three to seven of them; `low` alone where the two are equal."""
    for step in (s * 10.0**e for e in range(6, -7, -1) for s in (5, 2, 1)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first >= 2:
            return [short(k * step, 6) or 0.0 for k in range(first, last + 1)]
    return [low]


def log_axis(title: str, values: Sequence[float | None], pad: float = 0.06, **more: Any) -> Spec:
    """A logarithmic axis that holds all positive `values`, with round numbers in words ("2,000", "6.7 B")."""
    shown = [math.log10(v) for v in values if positive(v)] or [0.0]
    margin = max(pad * (max(shown) - min(shown)), 0.08)
    low, high = min(shown) - margin, max(shown) + margin
    ticks = log_ticks(10**low, 10**high)
    text = [tick_text(tick) for tick in ticks]
    return axis(title, type="log", range=[low, high], tickvals=ticks, ticktext=text, **more)


def tick_text(x: float) -> str:
    """'0.01', '30', '2 k', '7 B'."""
    return fmt.scaled(x) if x >= 10_000 else fmt.decimal(x, 4) if x < 1000 else f"{x:,.0f}"


def thin(values: Sequence[Any], at_most: int) -> list[int]:
    """Indices of at most so many of the values, evenly spaced from the first."""
    step = max(1, math.ceil(len(values) / at_most))
    return list(range(0, len(values), step))


def line(x: Sequence[float], y: Sequence[float], **more: Any) -> Spec:
    """A thin reference line that says nothing when hovered."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(x),
        "y": list(y),
        "line": {"color": "var(--axis)", "dash": "dot", "width": 1.2},
        "hoverinfo": "skip",
        "showlegend": False,
    } | more
