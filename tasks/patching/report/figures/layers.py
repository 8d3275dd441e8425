"""Candidates by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from tasks.patching.report.data import CandidatePoint, FeatureId, Setup
from tasks.report import numbers as fmt
from tasks.report.figures import Figure, Spec, axis, hover, layout

STAGES = (
    ("candidate", "candidate", {"symbol": "circle", "color": "var(--quiet)", "size": 6}),
    ("survivor", "kept after the screen", {"symbol": "circle", "color": "var(--series0)", "size": 9}),
    ("discovery", "discovery", {"symbol": "star", "color": "var(--accent)", "size": 14}),
)
CONTROL = {"symbol": "square-open", "color": "var(--random)", "size": 6}


def layer_figures(points: Sequence[CandidatePoint], setup: Setup) -> list[Figure]:
    """Over layers: how well a feature tells the groups apart, and how much it moves the choice."""
    low, high = setup.low, setup.high
    where = f"{len(points)} candidates in {len({p.id.layer for p in points})} layers"
    control = [_trace("random direction", points, lambda p: _points(p.exact_control), CONTROL, points, low, high)]
    return [
        _figure(
            "layers-difference",
            "How well a feature tells the groups apart",
            f"Absolute Cohen's d between {low} and {high} prompts of {where}.",
            _by_stage(points, lambda p: abs(p.d), low, high),
            f"|d|, {low} against {high} prompts",
            points,
        ),
        _figure(
            "layers-effect",
            "How much it moves the choice",
            f"Largest exact effect on the first token of {where}, and of random directions.",
            control + _by_stage(points, lambda p: _points(p.exact), low, high),
            "largest exact effect (points)",
            points,
        ),
    ]


def _points(effect: float | None) -> float | None:
    return None if effect is None else 100 * effect


def _by_stage(
    points: Sequence[CandidatePoint], y: Callable[[CandidatePoint], float | None], low: str, high: str
) -> list[Spec]:
    groups = [(name, [p for p in points if p.stage == stage], marker) for stage, name, marker in STAGES]
    return [_trace(name, group, y, marker, points, low, high) for name, group, marker in groups if group]


def _trace(
    name: str,
    group: Sequence[CandidatePoint],
    y: Callable[[CandidatePoint], float | None],
    marker: Spec,
    everything: Sequence[CandidatePoint],
    low: str,
    high: str,
) -> Spec:
    x = spread(everything)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [x[p.id] for p in group],
        "y": [y(p) for p in group],
        "marker": marker,
        "text": [_describe(p, low, high) for p in group],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _figure(id: str, heading: str, alt: str, data: list[Spec], title: str, points: Sequence[CandidatePoint]) -> Figure:
    layers = sorted({p.id.layer for p in points})
    return Figure(
        id=id,
        heading=heading,
        alt=alt,
        data=data,
        layout=layout(
            height=340,
            xaxis=axis("layer (residual stream after this block)", tickvals=layers, showgrid=False),
            yaxis=axis(title, rangemode="tozero"),
            margin={"l": 50, "r": 10, "t": 10, "b": 45},
        ),
    )


def spread(points: Sequence[CandidatePoint]) -> dict[FeatureId, float]:
    """x positions: candidates of one layer side by side around it, in order of feature number."""
    layers = sorted({p.id.layer for p in points})
    gap = min((b - a for a, b in pairwise(layers)), default=1)
    x = {}
    for layer in layers:
        ids = sorted({p.id for p in points if p.id.layer == layer}, key=lambda id: id.feature)
        for i, id in enumerate(ids):
            x[id] = layer + (0.7 * gap * (i / (len(ids) - 1) - 0.5) if len(ids) > 1 else 0.0)
    return x


def _describe(p: CandidatePoint, low: str, high: str) -> str:
    lines = [
        f"{p.id.name} ({p.stage})",
        f"d = {fmt.decimal(p.d)}, {fmt.equals('q', p.q)}",
        f"value: {low} {fmt.decimal(p.value_low)}, {high} {fmt.decimal(p.value_high)}",
    ]
    if p.exact is not None:
        lines.append(f"largest exact effect {fmt.points(p.exact, signed=False)} points")
    if p.exact_control is not None:
        lines.append(f"random direction {fmt.points(p.exact_control, signed=False)} points")
    return hover(*lines)
