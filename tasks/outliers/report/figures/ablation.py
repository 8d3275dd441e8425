"""The functional check: what the model loses with some dimensions at zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tasks.outliers.report.ablation import in_words
from tasks.outliers.report.data import Ablation, Effect
from tasks.outliers.report.figures.common import line, log_axis, short
from tasks.report import numbers as fmt
from tasks.report.figures import Figure, Spec, axis, hover, layout

MARKS = {
    "systematic": ("circle", "var(--accent)"),
    "largest": ("circle", "var(--accent)"),
    "random_systematic": ("square-open", "var(--random)"),
    "random_largest": ("square-open", "var(--random)"),
}


def ablation_figures(id: str, checked: Ablation) -> list[Figure]:
    """Perplexity as a multiple of the untouched model's, and the change of the mean top-1 probability."""
    effects = [e for e in checked.effects if e.condition != "none"]
    ratios = [r for e in effects for r in (e.ratio, e.ratio_low, e.ratio_high)]
    x = log_axis("times the untouched model’s", [1.0, *ratios], pad=0.12)
    changes = [100 * t for e in effects for t in (e.top1_change, e.top1_low, e.top1_high) if t is not None]
    low, high = min([0.0, *changes]), max([0.0, *changes])
    pad = max(0.08 * (high - low), 1.0)
    return [
        _figure(
            f"{id}-perplexity",
            "Perplexity",
            "Perplexity with dimensions at zero as a multiple of the untouched model's, with intervals.",
            effects,
            x,
            1.0,
            lambda e: (e.ratio, e.ratio_low, e.ratio_high),
        ),
        _figure(
            f"{id}-top1",
            "Top-1 probability",
            "Change of the mean top-1 probability with dimensions at zero, with intervals.",
            effects,
            axis("change (points)", range=[low - pad, high + pad], nticks=6),
            0.0,
            lambda e: tuple(None if t is None else 100 * t for t in (e.top1_change, e.top1_low, e.top1_high)),
        ),
    ]


def _figure(
    id: str,
    heading: str,
    alt: str,
    effects: Sequence[Effect],
    x: Spec,
    nothing: float,
    values: Callable[[Effect], tuple[float | None, ...]],
) -> Figure:
    data = [line([nothing, nothing], [-0.6, len(effects) - 0.4])]
    for i, effect in enumerate(effects):
        value, low, high = values(effect)
        if value is not None:
            data.append(_mark(effect, len(effects) - 1 - i, value, low, high))
    return Figure(
        id=id,
        heading=heading,
        alt=alt,
        data=data,
        layout=layout(
            height=70 + 38 * max(len(effects), 1),
            xaxis=x,
            yaxis=axis(
                "",
                tickvals=[len(effects) - 1 - i for i in range(len(effects))],
                ticktext=[in_words(e).replace(", ", "<br>", 1) for e in effects],
                range=[-0.6, len(effects) - 0.4],
                showgrid=False,
            ),
            showlegend=False,
            margin={"l": 10, "r": 14, "t": 8, "b": 45},
        ),
    )


def _mark(effect: Effect, y: int, value: float, low: float | None, high: float | None) -> Spec:
    symbol, colour = MARKS[effect.condition]
    ends = (value if low is None else low, value if high is None else high)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": in_words(effect),
        "x": [short(value, 5)],
        "y": [y],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [short(ends[1] - value, 5)],
            "arrayminus": [short(value - ends[0], 5)],
            "color": colour,
            "thickness": 2,
            "width": 0,
        },
        "marker": {"symbol": symbol, "color": colour, "size": 10, "line": {"width": 1.6, "color": colour}},
        "text": [hover(*describe(effect))],
        "hovertemplate": "%{text}<extra></extra>",
    }


def describe(e: Effect) -> list[str]:
    """Hover lines of one condition."""
    return [
        f"{in_words(e)} at zero",
        f"perplexity {fmt.magnitude(e.perplexity)}, {fmt.ratio(e.ratio)} times the untouched model’s"
        f" ({fmt.ratios(e.ratio_low, e.ratio_high)})",
        f"top-1 probability {fmt.percent(e.top1, 1)}, {fmt.points(e.top1_change)} points"
        f" ({fmt.interval(e.top1_low, e.top1_high)})",
    ]
