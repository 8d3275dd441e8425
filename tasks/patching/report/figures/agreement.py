"""Exact effects of the screen against sampled effects."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.patching.report.data import EffectRow, Setup
from tasks.patching.report.figures.estimates import describe, error_bars, for_choice, span, tick_step
from tasks.report import numbers as fmt
from tasks.report.figures import SYMBOLS, Figure, Spec, axis, escape, hover, layout, series


def agreement_figure(id: str, rows: Sequence[EffectRow], setup: Setup, default: str) -> Figure:
    """Exact first-token effect (x) against sampled effect (y) with intervals and the identity line.

    Every row must have an exact effect.
    """
    ends = span((r.estimate for r in rows), [100 * r.exact for r in rows])
    step = tick_step(ends[1] - ends[0])
    data: list[Spec] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "equal",
            "x": ends,
            "y": ends,
            "line": {"color": "var(--quiet)", "dash": "dot", "width": 1.2},
            "hoverinfo": "skip",
        }
    ]
    for choice in setup.choices:
        for i, prompt in enumerate(p.name for p in setup.prompts):
            points = [r for r in rows if r.prompt == prompt and r.choice == choice]
            if points:
                data.append(_trace(points, prompt, i, setup.alpha) | for_choice(choice, default))
    return Figure(
        id=id,
        heading="Exact against sampled",
        alt=f"Exact first-token effects against sampled effects of {len({r.id for r in rows})} features.",
        data=data,
        layout=layout(
            height=440,
            xaxis=axis("exact effect on the first token (points)", range=ends, zeroline=True, dtick=step),
            yaxis=axis("sampled effect (points)", range=ends, zeroline=True, dtick=step),
            margin={"l": 50, "r": 10, "t": 10, "b": 45},
        ),
    )


def _trace(points: Sequence[EffectRow], prompt: str, index: int, alpha: float) -> Spec:
    colour = series(index)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escape(f"{prompt} prompt"),
        "x": [100 * r.exact for r in points],
        "y": [100 * r.estimate.effect for r in points],
        "error_y": error_bars([r.estimate for r in points], colour, 1.3),
        "marker": {"color": colour, "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 9},
        "text": [
            hover(*describe(r, r.estimate, alpha), f"exact, first token: {fmt.points(r.exact)} points") for r in points
        ],
    }
