"""Models against each other: outliers by size, the phase change of LLM.int8() (arXiv 2208.07339, figure 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tasks.outliers.report.data import ModelReport, ModelRow
from tasks.outliers.report.figures.common import log_axis, log_ticks, short, tick_text
from tasks.report import numbers as fmt
from tasks.report.figures import Figure, Spec, axis, hover, layout, selected

SIZE = "size"
SIZE_NAMES = ("all parameters", "active per token")
PHASE_CHANGE = 6.7e9
"""Parameters at which outliers reach all layers of the models of the paper."""

Measure = Callable[[ModelRow], float | None]


def size_figures(id: str, models: Sequence[ModelReport]) -> list[Figure]:
    """Three panels over parameters; models bear their number in the table of models, dense ones a circle."""
    return [
        _figure(f"{id}-dimensions", "Systematic dimensions per sequence", models, *_dimensions_axis(models)),
        _figure(f"{id}-layers", "Points affected", models, lambda r: r.mean_layer_share or 0.0, _share_axis()),
        _figure(f"{id}-positions", "Positions affected", models, lambda r: r.mean_position_share or 0.0, _share_axis()),
    ]


def _share_axis() -> Spec:
    return axis("", range=[-0.06, 1.08], tickformat=".0%", nticks=6)


def _dimensions_axis(models: Sequence[ModelReport]) -> tuple[Measure, Spec]:
    """A log axis, with a place for 0 below the smallest number: models differ by factors of hundreds."""
    found = [m.row.per_sequence or 0.0 for m in models]
    some = [n for n in found if n > 0] or [1.0]
    zero = min(some) / 3
    low, high = (zero if 0.0 in found else min(some)) / 1.5, 1.5 * max(some)
    ticks = log_ticks(min(some), high)
    named = [(zero, "0")] * (0.0 in found) + [(tick, tick_text(tick)) for tick in ticks]
    spec = axis(
        "",
        type="log",
        range=[short(math.log10(low)), short(math.log10(high))],
        tickvals=[value for value, _ in named],
        ticktext=[text for _, text in named],
    )
    return lambda row: row.per_sequence or zero, spec


def _figure(id: str, heading: str, models: Sequence[ModelReport], measure: Measure, y: Spec) -> Figure:
    sizes = [s for m in models for s in (m.row.parameters, m.row.active)]
    x = log_axis("parameters", [float(s) for s in sizes if s], pad=0.15)
    data = [_trace(models, moe, i, measure) for i in range(2) for moe in (False, True)]
    low, high = (10**end for end in x["range"])
    shapes = [_phase_change()] if low < PHASE_CHANGE < high else []
    return Figure(
        id=id,
        heading=heading,
        alt=f"{heading} of {len(models)} models over their parameters. The table of models holds the numbers.",
        data=[trace for trace in data if trace["x"]],
        layout=layout(
            height=300,
            xaxis=x | {"showgrid": False},
            yaxis=y,
            shapes=shapes,
            showlegend=False,
            margin={"l": 46, "r": 10, "t": 10, "b": 45},
        ),
    )


def _trace(models: Sequence[ModelReport], moe: bool, size: int, measure: Measure) -> Spec:
    chosen = [
        (n, m, m.row.active if size else m.row.parameters)
        for n, m in enumerate(models, start=1)
        if m.is_moe == moe and (m.row.active if size else m.row.parameters)
    ]
    colour = "var(--series1)" if moe else "var(--series0)"
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": "mixture of experts" if moe else "dense",
        "cliponaxis": False,
        "x": [short(float(parameters or 0), 4) for _, _, parameters in chosen],
        "y": [short(measure(m.row), 4) for _, m, _ in chosen],
        "marker": {
            "symbol": "square" if moe else "circle",
            "color": colour,
            "size": 19,
            "line": {"width": 1, "color": "var(--bg)"},
        },
        "text": [str(n) for n, _, _ in chosen],
        "textposition": "middle center",
        "textfont": {"color": "var(--on-series)", "size": 11},
        "hovertext": [hover(*describe(m.row, m.is_moe)) for _, m, _ in chosen],
    } | selected(SIZE, SIZE_NAMES[size], SIZE_NAMES[0], "%{hovertext}<extra></extra>")


def _phase_change() -> Spec:
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": PHASE_CHANGE,
        "x1": PHASE_CHANGE,
        "y0": 0,
        "y1": 1,
        "line": {"color": "var(--axis)", "width": 1.2, "dash": "dot"},
        "layer": "below",
    }


def describe(row: ModelRow, moe: bool) -> list[str]:
    """Hover lines of one model."""
    active = f", {fmt.scaled(row.active)} active" if moe and row.active else ""
    return [
        row.model,
        f"{fmt.scaled(row.parameters)} parameters{active}",
        f"{fmt.of(row.systematic, row.d_model)} dimensions systematic, {fmt.mean(row.per_sequence)} per sequence",
        f"{fmt.percent(row.mean_layer_share)} of points, {fmt.percent(row.mean_position_share)} of positions",
    ]
