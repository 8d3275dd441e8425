"""High against low value, feature by feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tasks.patching.report.data import EffectRow, Estimate, FeatureId, Setup
from tasks.patching.report.figures.estimates import describe, error_bars, for_choice, span
from tasks.report.figures import Figure, Spec, axis, hover, layout

ROW_HEIGHT = 40


class Mark(NamedTuple):
    """How one kind of estimate is drawn; `offset` is its height above the feature's line, in rows."""

    name: str
    offset: float
    symbol: str
    colour: str
    size: int
    thickness: float


CONTROL = Mark("random direction", -0.10, "square-open", "var(--random)", 7, 1.2)
CONFIRMATION = Mark("feature, held-out seeds", -0.30, "diamond-open", "var(--accent)", 9, 1.5)


def effect_figure(id: str, rows: Sequence[EffectRow], prompt: str, setup: Setup, default: str) -> Figure:
    """Effects on one prompt with intervals: feature, random direction of equal norm, held-out seeds.

    `rows` are the effects on all prompts: order of features and x range are shared by the prompts' figures.
    `default` is the choice that is shown first.
    """
    order = by_strength(rows)
    height = {feature: len(order) - 1 - i for i, feature in enumerate(order)}
    passed = Mark("feature, discovery", 0.16, "circle", "var(--accent)", 10, 2.5)
    other = Mark("feature, no discovery", 0.16, "circle", "var(--quiet)", 8, 1.5)
    data = []
    for choice in setup.choices:
        shown = [r for r in rows if r.prompt == prompt and r.choice == choice]
        for mark, points in (
            (passed, [(r, r.estimate) for r in shown if r.status]),
            (other, [(r, r.estimate) for r in shown if not r.status]),
            (CONTROL, [(r, r.control) for r in shown if r.control]),
            (CONFIRMATION, [(r, r.confirmation) for r in shown if r.confirmation]),
        ):
            if points:
                data.append(_trace(mark, points, height, setup.alpha) | for_choice(choice, default))
    everything = (e for r in rows for e in (r.estimate, r.control, r.confirmation) if e)
    return Figure(
        id=id,
        heading=f"On the “{prompt}” prompt",
        alt=f"Effects of {len(order)} features on the {prompt} prompt with intervals,"
        " each beside a random direction of equal norm. The table below holds the numbers.",
        data=data,
        layout=layout(
            height=60 + ROW_HEIGHT * max(len(order), 1),
            showlegend=False,
            xaxis=axis(f"{setup.high} − {setup.low} (points)", range=span(everything), zeroline=True),
            yaxis=axis(
                "",
                tickvals=[height[feature] for feature in order],
                ticktext=[feature.name for feature in order],
                range=[-0.6, len(order) - 0.4],
            ),
        ),
    )


def by_strength(rows: Sequence[EffectRow]) -> list[FeatureId]:
    """Features by their largest absolute effect over prompts and choices, strongest first."""
    best: dict[FeatureId, float] = {}
    for row in rows:
        best[row.id] = max(best.get(row.id, 0.0), abs(row.estimate.effect))
    return sorted(best, key=lambda feature: (-best[feature], feature.layer, feature.feature))


def _trace(
    mark: Mark, points: Sequence[tuple[EffectRow, Estimate]], height: dict[FeatureId, int], alpha: float
) -> Spec:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": mark.name,
        "x": [100 * e.effect for _, e in points],
        "y": [height[r.id] + mark.offset for r, _ in points],
        "error_x": error_bars([e for _, e in points], mark.colour, mark.thickness),
        "marker": {
            "symbol": mark.symbol,
            "color": mark.colour,
            "size": mark.size,
            "line": {"width": 1.5, "color": mark.colour},
        },
        "text": [hover(mark.name, *describe(r, e, alpha)) for r, e in points],
    }
