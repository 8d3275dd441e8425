"""Parts that all figures share: the figure record, text, axes, legend, layout.

Colours are names of the page's style variables ("var(--accent)"); the page resolves them for the light, dark
and print palette. A trace with `meta = {"choice": c}` is shown while choice c is selected. Every point
carries its full text for hovering. Names that come from the user are HTML-escaped, since plotly reads
markup in text.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.report import numbers as fmt
from tasks.report.data import EffectRow, Estimate

Spec = dict[str, Any]
FONT = "var(--sans)"
LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
SYMBOLS = ("circle", "diamond", "triangle-up", "square", "cross")


class Figure(BaseModel):
    """A figure of the page: plotly `data` and `layout`; `alt` says what it shows to a screen reader."""

    model_config = ConfigDict(frozen=True)

    id: str
    heading: str
    alt: str
    data: list[Spec]
    layout: Spec


def series(index: int) -> str:
    """Colour of the index-th category; there are four, and symbols tell more apart."""
    return f"var(--series{index % 4})"


def escape(value: object) -> str:
    """Text that plotly shows as it is, without reading markup in it."""
    return html.escape(str(value))


def hover(*lines: str) -> str:
    """Lines of a hover label, escaped."""
    return "<br>".join(escape(line) for line in lines)


def for_choice(choice: str, default: str) -> Spec:
    """Properties of a trace that belongs to one choice."""
    return {
        "meta": {"choice": choice},
        "visible": choice == default,
        "hovertemplate": "%{text}<extra></extra>",
    }


def describe(row: EffectRow, e: Estimate, alpha: float) -> list[str]:
    """Hover lines of one estimate: feature, effect, interval, counts, q."""
    lines = [
        f"{row.id.name}, {row.prompt} prompt, {row.choice}",
        f"effect {fmt.points(e.effect)} points, {fmt.level(alpha)} interval {fmt.interval(e.ci_low, e.ci_high)}",
        f"{fmt.of(e.a.k, e.a.n)} against {fmt.of(e.b.k, e.b.n)} trials",
    ]
    return lines + ([fmt.equals("q", e.q)] if e.q is not None else [])


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


def axis(title: str, **more: Any) -> Spec:
    """A quiet axis that cannot be dragged, so that a finger on a plot still scrolls the page."""
    named = {"title": {"text": escape(title), "standoff": 10, "font": {"size": 12}}} if title else {}
    return named | {
        "fixedrange": True,
        "automargin": True,
        "gridcolor": "var(--grid)",
        "zeroline": False,
        "zerolinecolor": "var(--axis)",
        "zerolinewidth": 1,
        "linecolor": "var(--grid)",
        "ticks": "",
        **more,
    }


def layout(height: int, **more: Any) -> Spec:
    """A transparent plot in the page's font with a legend on top."""
    return {
        "height": height,
        "autosize": True,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": "var(--fg)"},
        "hoverlabel": {
            "bgcolor": "var(--card)",
            "bordercolor": "var(--rule)",
            "font": {"family": FONT, "size": 12, "color": "var(--fg)"},
            "align": "left",
        },
        "hovermode": "closest",
        "dragmode": False,
        "showlegend": True,
        "legend": LEGEND,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 40},
        **more,
    }
