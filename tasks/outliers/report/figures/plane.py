"""All dimensions in the plane of the two criteria, and by magnitude against the scale-free measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tasks.outliers.report.data import Dimension, Site
from tasks.outliers.report.figures.common import line, log_axis, of_variant, positive, short
from tasks.outliers.spec import VARIANTS, Criteria, Variant
from tasks.report import numbers as fmt
from tasks.report.figures import Figure, Spec, axis, layout, selected

SYSTEMATIC = {"symbol": "circle", "color": "var(--accent)", "size": 9, "line": {"width": 1, "color": "var(--bg)"}}
RELATIVE = {"symbol": "diamond-open", "color": "var(--random)", "size": 9, "line": {"width": 1.6}}
OTHER = {"symbol": "circle", "color": "var(--quiet)", "size": 5, "opacity": 0.7}
MANY = 60
"""So many marks are drawn small, and show through."""
CRITERION = "criterion"
CRITERION_NAMES = ("by magnitude", "against the rms")
AGAINST = "against"
AGAINST_NAMES = ("root mean square", "median")


def plane_figure(id: str, site: Site, criteria: Criteria, default: Variant) -> Figure:
    """Share of points (x) and of positions (y) with an outlier; systematic ones lie in the shaded corner.

    By magnitude, or against the root mean square of the token.
    """
    hovered = (
        "dimension %{customdata[0]}<br>%{x:.1%} of points, %{y:.1%} of positions<br>largest |x| %{customdata[1]:,},"
        " %{customdata[2]:,} outliers<extra></extra>"
    )
    data = []
    for variant in VARIANTS:
        every = site.dimensions[variant]
        dims = [d for d in every if d.occurrences]
        relative = [d for d in every if d.relative_layer_share]
        for criterion, name, mark, chosen in (
            (CRITERION_NAMES[0], "not systematic", OTHER, [d for d in dims if not d.systematic]),
            (CRITERION_NAMES[0], "systematic", SYSTEMATIC, [d for d in dims if d.systematic]),
            (CRITERION_NAMES[1], "not systematic", OTHER, [d for d in relative if not d.relative_systematic]),
            (CRITERION_NAMES[1], "systematic", RELATIVE, [d for d in relative if d.relative_systematic]),
        ):
            if criterion == CRITERION_NAMES[0]:
                trace = _marks(name, mark, chosen, lambda d: d.layer_share, lambda d: d.position_share)
            else:
                trace = _marks(
                    name, mark, chosen, lambda d: d.relative_layer_share, lambda d: d.relative_position_share
                )
            data.append(_also(trace | of_variant(variant, default, hovered), CRITERION, criterion, CRITERION_NAMES[0]))
    corner = {
        "type": "rect",
        "x0": criteria.layer_share,
        "y0": criteria.position_share,
        "x1": 1.04,
        "y1": 1.04,
        "fillcolor": "var(--accent)",
        "opacity": 0.09,
        "line": {"width": 0},
        "layer": "below",
    }
    return Figure(
        id=id,
        heading="The two criteria",
        alt="Every dimension by its share of points and of positions with an outlier; those beyond both thresholds are"
        " systematic.",
        data=data,
        layout=layout(
            height=360,
            xaxis=axis("share of points", range=[-0.02, 1.04], tickformat=".0%", nticks=6),
            yaxis=axis("share of positions (union over points)", range=[-0.02, 1.04], tickformat=".0%", nticks=6),
            shapes=[corner],
            margin={"l": 52, "r": 10, "t": 10, "b": 45},
        ),
    )


def scale_figure(id: str, site: Site, criteria: Criteria, default: Variant) -> Figure:
    """Largest magnitude (x) against the largest |x| / rms, or |x| / median, of a token (y).

    Dimensions that are systematic against the rms without an outlier by magnitude stand to the left of the threshold.
    """
    measures: dict[str, Callable[[Dimension], float | None]] = {
        AGAINST_NAMES[0]: lambda d: d.max_over_rms,
        AGAINST_NAMES[1]: lambda d: d.max_over_median,
    }
    kept = {v: [d for d in site.dimensions[v] if d.occurrences or d.relative_systematic] for v in VARIANTS}
    every = [d for v in VARIANTS for d in kept[v]]
    magnitudes = [criteria.threshold, *(d.max_magnitude for d in every)]
    data: list[Spec] = []
    for measure, y in measures.items():
        for variant in VARIANTS:
            for name, mark, chosen in (
                ("neither", OTHER, [d for d in kept[variant] if not (d.systematic or d.relative_systematic)]),
                ("systematic", SYSTEMATIC, [d for d in kept[variant] if d.systematic]),
                ("systematic against the rms", RELATIVE, [d for d in kept[variant] if d.relative_systematic]),
            ):
                hovered = (
                    "dimension %{customdata[0]}<br>largest |x| %{customdata[1]:,}"
                    f"<br>%{{y:,}} times its token’s {measure}<extra></extra>"
                )
                trace = _marks(name, mark, chosen, lambda d: d.max_magnitude, y)
                data.append(_also(trace | of_variant(variant, default, hovered), AGAINST, measure, AGAINST_NAMES[0]))
    x = log_axis("largest |x|", magnitudes)
    data.append(line([10 ** x["range"][0], 10 ** x["range"][1]], [criteria.relative_threshold] * 2))
    return Figure(
        id=id,
        heading="Magnitude and scale",
        alt="Every dimension by its largest magnitude and by the largest ratio to its token's root mean square or"
        " median magnitude.",
        data=data,
        layout=layout(
            height=360,
            xaxis=x,
            yaxis=axis("largest |x| / scale of its token", type="log", tickformat=","),
            margin={"l": 52, "r": 10, "t": 10, "b": 45},
        ),
    )


def _also(trace: Spec, key: str, option: str, default: str) -> Spec:
    """The trace, shown only while the option of this key is selected too."""
    other = selected(key, option, default)
    return trace | {"meta": trace["meta"] | other["meta"], "visible": trace["visible"] and other["visible"]}


def _marks(
    name: str,
    mark: Spec,
    dims: Sequence[Dimension],
    x: Callable[[Dimension], float | None],
    y: Callable[[Dimension], float | None],
) -> Spec:
    return {
        "type": "scatter",
        "mode": "markers",
        "cliponaxis": False,
        "name": name,
        "x": [short(x(d)) for d in dims],
        "y": [short(positive(y(d)) if y(d) else 0.0) for d in dims],
        "customdata": [[d.dim, short(d.max_magnitude, 4), d.occurrences] for d in dims],
        "marker": mark | ({"size": 6, "opacity": 0.55, "line": {"width": 0}} if len(dims) > MANY else {}),
    }


def describe(d: Dimension) -> list[str]:
    """Hover lines of one dimension."""
    return [
        f"dimension {d.dim}",
        f"outliers at {fmt.percent(d.layer_share, 1)} of points, {fmt.percent(d.position_share, 1)} of positions",
        f"largest |x| {fmt.magnitude(d.max_magnitude)}, {fmt.count(d.occurrences)} outliers",
    ]
