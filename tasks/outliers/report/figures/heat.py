"""Where the systematic dimensions are: largest magnitude by point and dimension."""

from __future__ import annotations

import math

from tasks.outliers.report.data import Site
from tasks.outliers.report.figures.common import log_ticks, of_variant, short, thin, tick_text
from tasks.outliers.spec import VARIANTS, Variant
from tasks.report.figures import Figure, Spec, axis, escape, layout

HEAT: list[list[float | str]] = [[i / 5, f"var(--heat{i})"] for i in range(6)]
ROWS = 560
LAYER_TICKS = 16


def heat_figure(id: str, site: Site, threshold: float, default: Variant) -> Figure:
    """Rows are points from the first layer down, columns dimensions, strongest first; empty where no outlier is.

    One trace per variant; the colour is log10 of the largest magnitude.
    """
    found = [m for v in VARIANTS for row in site.heat.magnitude[v] for m in row if m]
    low, high = math.log10(threshold), math.log10(max([*found, 1.5 * threshold]))
    points, columns = len(site.points), len(site.heat.dims)
    row = max(5.0, min(18.0, ROWS / points))
    ticks = log_ticks(threshold, 10**high)
    scale = {
        "coloraxis": {
            "cmin": short(low),
            "cmax": short(high),
            "colorscale": HEAT,
            "colorbar": {
                "title": {"text": "largest |x|", "side": "right", "font": {"size": 12}},
                "thickness": 10,
                "len": 1,
                "outlinewidth": 0,
                "xpad": 4,
                "tickvals": [short(math.log10(t), 4) for t in ticks],
                "ticktext": [tick_text(t) for t in ticks],
                "tickfont": {"color": "var(--fg)"},
            },
        }
    }
    at = [i for i, p in enumerate(site.points) if i == 0 or p.layer != site.points[i - 1].layer]
    at = [at[i] for i in thin(at, LAYER_TICKS)]
    names = [escape(p.name) for p in site.points]
    return Figure(
        id=id,
        heading="Largest magnitude by layer and dimension",
        alt=f"Heat map of the largest magnitude of {columns} dimensions at {points} points."
        " The table of systematic dimensions holds the main numbers.",
        data=[_map(site, names, v, default) for v in VARIANTS],
        layout=layout(
            height=round(80 + row * points),
            xaxis=axis(
                "dimension, strongest first",
                type="category",
                tickangle=-90 if columns > 6 else 0,
                showgrid=False,
                nticks=columns if columns <= 24 else columns // 2,
                tickfont={"size": 11 if columns <= 24 else 9},
            ),
            yaxis=axis(
                "layer",
                type="category",
                autorange="reversed",
                tickvals=[names[i] for i in at],
                ticktext=[str(site.points[i].layer) for i in at],
                showgrid=False,
            ),
            plot_bgcolor="var(--soft)",
            showlegend=False,
            margin={"l": 46, "r": 10, "t": 10, "b": 50},
            **scale,
        ),
        width=None if columns > 16 else 260 + 26 * columns,
    )


def _map(site: Site, names: list[str], variant: Variant, default: Variant) -> Spec:
    magnitude, occurrences, tokens = site.heat.magnitude[variant], site.heat.occurrences[variant], site.tokens[variant]
    few = len(site.heat.dims) <= 30 and len(site.points) <= 60
    return {
        "type": "heatmap",
        "x": [str(dim) for dim in site.heat.dims],
        "y": names,
        "z": [[None if m is None else short(math.log10(m)) for m in row] for row in magnitude],
        "customdata": [
            [None if n is None else [short(m), n, short(n / tokens, 2)] for m, n in zip(*both, strict=True)]
            for both in zip(magnitude, occurrences, strict=True)
        ],
        "coloraxis": "coloraxis",
        "hoverongaps": False,
        "xgap": 1 if few else 0,
        "ygap": 1 if few else 0,
    } | of_variant(
        variant,
        default,
        "dimension %{x} at %{y}<br>largest |x| %{customdata[0]:,}<br>%{customdata[1]:,} outliers,"
        " at %{customdata[2]:.1~%} of positions<extra></extra>",
    )
