"""The watched points in order of depth: how much is an outlier, and how large it gets."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.outliers.report.data import Point, Site
from tasks.outliers.report.figures.common import KINDS, log_axis, of_variant, positive, short
from tasks.outliers.spec import VARIANTS, Variant
from tasks.report import numbers as fmt
from tasks.report.figures import Figure, Spec, axis, hover, layout


def points_figure(id: str, site: Site, default: Variant) -> Figure:
    """Outliers per thousand values, and the largest magnitude, by layer; a rate of 0 is missing."""
    kinds = [kind for kind in KINDS if any(p.kind == kind for p in site.points)]
    data: list[Spec] = []
    for variant in VARIANTS:
        for kind in kinds:
            chosen = [p for p in site.points if p.kind == kind]
            data.append(_trace(chosen, kind, variant, [_rate(p, variant) for p in chosen], "y2", default))
            data.append(_trace(chosen, kind, variant, [p.max_magnitude[variant] for p in chosen], "y", default))
    rates = [_rate(p, v) for p in site.points for v in VARIANTS]
    magnitudes = [p.max_magnitude[v] for p in site.points for v in VARIANTS]
    return Figure(
        id=id,
        heading="Outliers by layer",
        alt=f"Outliers per thousand values and the largest magnitude at {len(site.points)} points by layer.",
        data=data,
        layout=layout(
            height=420,
            xaxis=axis("layer", showgrid=False, range=[-0.5, max(p.layer for p in site.points) + 0.5], anchor="y"),
            yaxis2=log_axis("outliers per 1,000 values", rates, domain=[0.55, 1]),
            yaxis=log_axis("largest |x|", magnitudes, domain=[0, 0.45]),
            showlegend=len(kinds) > 1,
            margin={"l": 56, "r": 10, "t": 10, "b": 45},
        ),
    )


def _rate(p: Point, variant: Variant) -> float | None:
    """Outliers per thousand values; the first position's share of the values is left in the denominator."""
    return positive(1000 * p.outliers[variant] / p.values) if p.values else None


def _trace(
    points: Sequence[Point], kind: str, variant: Variant, y: Sequence[float | None], axis_name: str, default: Variant
) -> Spec:
    name, colour, symbol = KINDS[kind]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "cliponaxis": False,
        "name": name,
        "legendgroup": kind,
        "showlegend": axis_name == "y",
        "x": [p.layer for p in points],
        "y": [short(positive(v), 4) for v in y],
        "yaxis": axis_name,
        "line": {"color": colour, "width": 1.5},
        "marker": {"color": colour, "symbol": symbol, "size": 6},
        "text": [hover(p.name, _describe(p, variant, axis_name)) for p in points],
    } | of_variant(variant, default)


def _describe(p: Point, variant: Variant, axis_name: str) -> str:
    if axis_name == "y":
        return f"largest |x| {fmt.magnitude(p.max_magnitude[variant])}"
    return f"{fmt.count(p.outliers[variant])} outliers among {fmt.scaled(p.values)} values"
