"""The systematic dimensions one by one: how often they recur, where they reach, which sign they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tasks.outliers.report.data import Dimension
from tasks.outliers.report.figures.common import line, short
from tasks.outliers.report.figures.plane import describe
from tasks.report import numbers as fmt
from tasks.report.figures import Figure, Spec, axis, hover, layout

BARS = 60
ROW_HEIGHT = 20


def recurrence_rows_figure(id: str, dims: Sequence[Dimension], sequences: int) -> Figure:
    """In how many sequences each dimension is systematic by itself, in the rows of the figures beside it."""
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [d.sequences for d in dims],
        "y": [len(dims) - 1 - i for i in range(len(dims))],
        "marker": {"color": "var(--series2)"},
        "text": [
            hover(f"dimension {d.dim}", f"systematic in {fmt.of(d.sequences, sequences)} sequences") for d in dims
        ],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }
    step = max(1, -(-sequences // 4))
    return Figure(
        id=id,
        heading="Recurrence",
        alt=f"In how many of the {sequences} sequences each of {len(dims)} dimensions is systematic.",
        data=[bars],
        layout=layout(
            height=70 + ROW_HEIGHT * max(len(dims), 2),
            bargap=0.35,
            xaxis=axis("", range=[0, sequences * 1.03], tickvals=[*range(0, sequences - step // 2, step), sequences]),
            yaxis=_rows(dims),
            showlegend=False,
            margin={"l": 10, "r": 12, "t": 40, "b": 30},
        ),
    )


def recurrence_figure(id: str, dims: Sequence[Dimension], sequences: int) -> Figure:
    """In how many sequences each dimension is systematic by itself; a histogram where there are many dimensions.

    `dims`: those that are systematic in at least one sequence or over all, strongest first.
    """
    many = len(dims) > BARS
    if many:
        counted = Counter(d.sequences for d in dims)
        x: Sequence[int | str] = list(range(sequences + 1))
        y = [counted.get(k, 0) for k in range(sequences + 1)]
        text = [
            hover(fmt.some(n, "dimension", "dimensions"), f"in {fmt.of(k, sequences)} sequences")
            for k, n in enumerate(y)
        ]
        titles = ("sequences in which it is systematic", "dimensions")
    else:
        x = [str(d.dim) for d in dims]
        y = [d.sequences for d in dims]
        text = [hover(f"dimension {d.dim}", f"systematic in {fmt.of(d.sequences, sequences)} sequences") for d in dims]
        titles = ("dimension, strongest first", "sequences")
    bars = {
        "type": "bar",
        "x": x,
        "y": y,
        "marker": {"color": "var(--series0)"},
        "text": text,
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }
    return Figure(
        id=id,
        heading=f"Recurrence of all {fmt.count(len(dims))}",
        alt=f"In how many of the {sequences} sequences each of {len(dims)} dimensions is systematic.",
        data=[bars],
        layout=layout(
            height=240,
            xaxis=axis(titles[0], **({} if many else {"type": "category", "tickangle": -90 if len(dims) > 8 else 0})),
            yaxis=axis(titles[1], **({} if many else {"range": [0, sequences * 1.02]}), nticks=5),
            bargap=0.25 if len(dims) > 6 else 0.6,
            showlegend=False,
            margin={"l": 46, "r": 10, "t": 10, "b": 45},
        ),
    )


def shares_figure(id: str, dims: Sequence[Dimension], needed: float) -> Figure:
    """Share of positions of each dimension: the union over points, and the mean over the points that have any."""
    height = {d.dim: len(dims) - 1 - i for i, d in enumerate(dims)}
    links = {
        "type": "scatter",
        "mode": "lines",
        "x": [x for d in dims for x in (short(d.mean_point_share), short(d.position_share), None)],
        "y": [y for d in dims for y in (height[d.dim], height[d.dim], None)],
        "line": {"color": "var(--rule)", "width": 3},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    marks = [
        _shares("mean point", "square-open", "var(--series1)", dims, [d.mean_point_share for d in dims], height),
        _shares("union", "circle", "var(--series0)", dims, [d.position_share for d in dims], height),
    ]
    return Figure(
        id=id,
        heading="Share of positions",
        alt=f"Share of positions with an outlier of {len(dims)} dimensions: union over points beside the mean point.",
        data=[line([needed, needed], [-0.7, len(dims) - 0.3]), links, *marks],
        layout=layout(
            height=70 + ROW_HEIGHT * max(len(dims), 2),
            xaxis=axis("", range=[-0.02, 1.03], tickformat=".0%", nticks=6),
            yaxis=_rows(dims),
            margin={"l": 10, "r": 12, "t": 40, "b": 30},
        ),
    )


def _shares(
    name: str, symbol: str, colour: str, dims: Sequence[Dimension], x: Sequence[float], height: dict[int, int]
) -> Spec:
    return {
        "type": "scatter",
        "mode": "markers",
        "cliponaxis": False,
        "name": name,
        "x": [short(share) for share in x],
        "y": [height[d.dim] for d in dims],
        "marker": {"symbol": symbol, "color": colour, "size": 9, "line": {"width": 1.8, "color": colour}},
        "text": [
            hover(
                *describe(d),
                f"mean point {fmt.percent(d.mean_point_share, 1)}, largest {fmt.percent(d.max_point_share, 1)}",
            )
            for d in dims
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }


def sign_figure(id: str, dims: Sequence[Dimension]) -> Figure:
    """Which share of each dimension's outliers is negative (to the left) and positive (to the right)."""
    data = []
    for name, sign, colour, shape in (
        ("negative", -1, "var(--series0)", "/"),
        ("positive", 1, "var(--series1)", ""),
    ):
        shares = [d.positive_share if sign > 0 else 1 - (d.positive_share or 0.0) for d in dims]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "x": [sign * (short(share) or 0.0) for share in shares],
                "y": [len(dims) - 1 - i for i in range(len(dims))],
                "marker": {"color": colour, "pattern": {"shape": shape, "size": 6, "solidity": 0.25}},
                "text": [
                    hover(
                        f"dimension {d.dim}",
                        f"{fmt.count(d.positive)} positive, {fmt.count(d.negative)} negative outliers",
                    )
                    for d in dims
                ],
                "textposition": "none",
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    return Figure(
        id=id,
        heading="Sign",
        alt=f"Share of negative and of positive outliers of {len(dims)} dimensions.",
        data=data,
        layout=layout(
            height=70 + ROW_HEIGHT * max(len(dims), 2),
            barmode="relative",
            bargap=0.35,
            xaxis=axis(
                "",
                range=[-1.03, 1.03],
                tickvals=[-1, 0, 1],
                ticktext=["100 %", "0", "100 %"],
                zeroline=True,
            ),
            yaxis=_rows(dims),
            margin={"l": 10, "r": 26, "t": 40, "b": 30},
        ),
    )


def _rows(dims: Sequence[Dimension]) -> Spec:
    return axis(
        "",
        tickvals=[len(dims) - 1 - i for i in range(len(dims))],
        ticktext=[str(d.dim) for d in dims],
        range=[-0.7, len(dims) - 0.3],
        showgrid=False,
        ticklen=4,
    )
