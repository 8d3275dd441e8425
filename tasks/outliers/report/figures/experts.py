"""Mixture of experts: how the tokens spread over the routed experts, and where outliers are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tasks.outliers.report.data import Expert
from tasks.outliers.report.figures.common import short, thin
from tasks.report import numbers as fmt
from tasks.report.figures import Figure, Spec, axis, hover, layout, selected

SHOWN = "experts"
SHOWN_NAMES = ("share of tokens", "outliers in", "outliers out")
LOAD: list[list[float | str]] = [[0, "var(--less)"], [0.5, "var(--card)"], [1, "var(--more)"]]
RATE: list[list[float | str]] = [[i / 5, f"var(--heat{i})"] for i in range(6)]


def experts_figure(id: str, experts: Sequence[Expert]) -> Figure:
    """Routed experts by layer: share of tokens against the expected share, or share of their tokens with an outlier.

    Shares are coloured on a log2 scale that ends at 1/8 and 8 times the expected share.
    """
    routed = [e for e in experts if e.kind == "routed"]
    layers = sorted({e.layer for e in routed})
    numbers = sorted({e.expert for e in routed})
    cells = {(e.layer, e.expert): e for e in routed}
    grid = [[cells.get((layer, n)) for n in numbers] for layer in layers]
    rates: list[tuple[str, Callable[[Expert], float | None]]] = [
        (SHOWN_NAMES[1], lambda e: e.rate_in),
        (SHOWN_NAMES[2], lambda e: e.rate_out),
    ]
    ratios = [2.0**k for k in (-3, -2, -1, 0, 1, 2, 3)]
    load = _map(grid, layers, numbers, _log_ratio, LOAD, SHOWN_NAMES[0], "%{customdata:.2~%} of tokens")
    load |= {"zmin": -3, "zmax": 3}
    load["customdata"] = [[None if e is None else short(e.share, 2) for e in row] for row in grid]
    load["colorbar"] |= {
        "tickvals": [math.log2(r) for r in ratios],
        "ticktext": ["⅛", "¼", "½", "1", "2", "4", "8"],
        "title": {"text": "times the expected share", "side": "right", "font": {"size": 12}},
    }
    data = [load]
    for name, rate in rates:
        trace = _map(grid, layers, numbers, rate, RATE, name, "%{z:.1~%} of its tokens with an outlier")
        trace |= {"zmin": 0, "zmax": max([rate(e) or 0.0 for e in routed] + [1e-6])}
        trace["colorbar"] |= {"tickformat": ".0%", "nticks": 5}
        data.append(trace)
    row = max(6.0, min(18.0, 460 / max(len(layers), 1)))
    at = thin(layers, 16)
    return Figure(
        id=id,
        heading="Experts by layer",
        alt=f"Share of tokens, and of tokens with an outlier, of {len(numbers)} experts in {len(layers)} layers.",
        data=data,
        layout=layout(
            height=round(80 + row * len(layers)),
            xaxis=axis("expert", showgrid=False, nticks=12),
            yaxis=axis(
                "layer",
                autorange="reversed",
                showgrid=False,
                tickvals=[layers[i] for i in at],
                ticktext=[str(layers[i]) for i in at],
            ),
            plot_bgcolor="var(--soft)",
            showlegend=False,
            margin={"l": 46, "r": 10, "t": 10, "b": 45},
        ),
        width=None if len(numbers) > 16 else 280 + 30 * len(numbers),
    )


def _log_ratio(e: Expert) -> float | None:
    """log2 of the share of tokens over the expected share, cut off at the colours' ends; None for no token."""
    if not e.share or not e.expected_share:
        return -3.0 if e.share == 0 else None
    return max(-3.0, min(3.0, math.log2(e.share / e.expected_share)))


def _map(
    grid: Sequence[Sequence[Expert | None]],
    layers: Sequence[int],
    numbers: Sequence[int],
    z: Callable[[Expert], float | None],
    colours: list[list[float | str]],
    name: str,
    hovered: str,
) -> Spec:
    return {
        "type": "heatmap",
        "x": list(numbers),
        "y": list(layers),
        "z": [[None if e is None else short(z(e), 2) for e in row] for row in grid],
        "colorscale": colours,
        "colorbar": {"thickness": 10, "outlinewidth": 0, "xpad": 4, "tickfont": {"color": "var(--fg)"}},
        "hoverongaps": False,
    } | selected(SHOWN, name, SHOWN_NAMES[0], f"layer %{{y}}, expert %{{x}}<br>{hovered}<extra></extra>")


def paths_figure(id: str, experts: Sequence[Expert]) -> Figure:
    """Share of tokens with an outlier by layer: into the FFN, out of the routed experts, out of the shared ones.

    Routed experts of a layer are weighted by their tokens.
    """
    layers = sorted({e.layer for e in experts})
    groups = {
        (layer, kind): [e for e in experts if (e.layer, e.kind) == (layer, kind)]
        for layer in layers
        for kind in ("routed", "shared")
    }
    named = (
        ("out of the routed experts", "routed", lambda e: e.with_outlier_out, "var(--series0)", "circle"),
        ("out of the shared experts", "shared", lambda e: e.with_outlier_out, "var(--series1)", "diamond"),
        ("into both", "routed", lambda e: e.with_outlier_in, "var(--quiet)", "square-open"),
    )
    data = []
    for name, kind, count, colour, symbol in named:
        rates = [_rate(groups[layer, kind], count) for layer in layers]
        if any(rate is not None for rate in rates):
            label = name if any(groups[layer, "shared"] for layer in layers) else name.replace("both", "them")
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": label,
                    "x": layers,
                    "y": [short(rate) for rate in rates],
                    "line": {"color": colour, "width": 1.5},
                    "marker": {"color": colour, "symbol": symbol, "size": 7},
                    "text": [
                        hover(f"layer {i}, {label}", f"{fmt.percent(r, 1)} of tokens")
                        for i, r in zip(layers, rates, strict=True)
                    ],
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )
    return Figure(
        id=id,
        heading="Tokens with an outlier",
        alt=f"Share of tokens with an outlier into and out of routed and shared experts in {len(layers)} layers.",
        data=data,
        layout=layout(
            height=320,
            xaxis=axis("layer", showgrid=False),
            yaxis=axis("share of tokens", rangemode="tozero", tickformat=".0%", nticks=6),
            margin={"l": 50, "r": 10, "t": 10, "b": 45},
        ),
    )


def _rate(experts: Sequence[Expert], count: Callable[[Expert], int | None]) -> float | None:
    """None where there is no token, or nobody counted."""
    tokens, counts = sum(e.tokens for e in experts), [count(e) for e in experts]
    return None if not tokens or None in counts else sum(filter(None, counts)) / tokens
