"""Exact choice probability against dose."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.patching.report.data import DoseCurve
from tasks.patching.report.figures.estimates import for_choice
from tasks.report import numbers as fmt
from tasks.report.figures import Figure, Spec, axis, hover, layout


def dose_figure(id: str, curves: Sequence[DoseCurve], default: str, top: float) -> Figure:
    """P(choice) at the first token over doses, for one feature on one prompt.

    `curves` holds one curve per choice; `top` is the end of the y axis, equal in all figures of a page.
    """
    first = curves[0]
    data = []
    for curve in curves:
        lines = [
            _line(curve, "feature", curve.feature, "var(--accent)", "solid", "circle"),
            _line(curve, "random direction", curve.random, "var(--random)", "dash", "square-open"),
        ]
        if curve.baseline is not None:
            lines.append(_baseline(curve, curve.baseline))
        data += [line | for_choice(curve.choice, default) for line in lines]
    ticks = [dose for dose in first.doses if dose in (0.0, 1.0, first.doses[0], first.doses[-1])]
    return Figure(
        id=id,
        heading=f"{first.id.name} on “{first.prompt}”",
        alt=f"Exact probability of each choice over doses of {first.id.name} on the {first.prompt} prompt.",
        data=data,
        layout=layout(
            height=190,
            xaxis=axis(
                "",
                tickvals=ticks,
                ticktext=[fmt.decimal(dose) for dose in ticks],
                tickangle=0,
                showgrid=False,
            ),
            yaxis=axis("", range=[0, top], tickformat=".0%", nticks=5),
            showlegend=False,
            margin={"l": 40, "r": 12, "t": 8, "b": 24},
        ),
    )


def _line(
    curve: DoseCurve, name: str, probabilities: Sequence[float | None], colour: str, dash: str, symbol: str
) -> Spec:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "cliponaxis": False,
        "name": name,
        "x": curve.doses,
        "y": list(probabilities),
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"color": colour, "symbol": symbol, "size": 7},
        "text": [
            hover(
                f"{curve.id.name}, {name}",
                f"dose {fmt.decimal(dose)} (value {fmt.decimal(value)})",
                f"P({curve.choice}) = {fmt.percent(p, 1)}",
            )
            for dose, value, p in zip(curve.doses, curve.values, probabilities, strict=True)
        ],
    }


def _baseline(curve: DoseCurve, probability: float) -> Spec:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "no edit",
        "x": [curve.doses[0], curve.doses[-1]],
        "y": [probability, probability],
        "line": {"color": "var(--axis)", "dash": "dot", "width": 1.2},
        "text": [hover("no edit", f"P({curve.choice}) = {fmt.percent(probability, 1)}")] * 2,
    }
