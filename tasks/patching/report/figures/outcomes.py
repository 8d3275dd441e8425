"""Shares of every choice, invalid included, without a feature edit."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.patching.report.data import ChoiceCell, Setup
from tasks.patching.scenario import INVALID
from tasks.report import numbers as fmt
from tasks.report.figures import LEGEND, Figure, Spec, axis, escape, hover, layout, series

SMALLEST_LABELLED = 0.06


def outcome_figure(id: str, cells: Sequence[ChoiceCell], setup: Setup) -> Figure:
    """Stacked shares per set of trials; choices in the scenario's order, `invalid` hatched."""
    data = [_bars(cells, choice, i) for i, choice in enumerate(setup.choices)]
    return Figure(
        id=id,
        heading="Choices without a feature edit",
        alt="Shares of each choice, invalid answers included, per prompt without a feature edit.",
        data=data,
        layout=layout(
            height=90 + 36 * max(len(cells), 1),
            barmode="stack",
            legend=LEGEND | {"traceorder": "normal"},
            bargap=0.3,
            xaxis=axis("", range=[0, 1], tickformat=".0%", showgrid=False),
            yaxis=axis("", autorange="reversed", showgrid=False, ticklen=6),
            margin={"l": 10, "r": 20, "t": 10, "b": 30},
        ),
    )


def describe_cell(cell: ChoiceCell) -> str:
    """'safe, no edit' or 'safe, SAE reconstruction at layer 12'."""
    if cell.arm == "baseline":
        return f"{cell.prompt}, no edit"
    layer = "" if cell.layer is None else f" at layer {cell.layer}"
    arm = {"reconstruction": "SAE reconstruction", "random": "random direction"}.get(cell.arm, cell.arm)
    return f"{cell.prompt}, {arm}{layer}"


def _bars(cells: Sequence[ChoiceCell], choice: str, index: int) -> Spec:
    counts = [cell.counts.get(choice, 0) for cell in cells]
    shares = [k / cell.n if cell.n else 0.0 for k, cell in zip(counts, cells, strict=True)]
    marker: Spec = {"color": series(index), "line": {"color": "var(--bg)", "width": 1}}
    if choice == INVALID:
        hatch = {"shape": "/", "size": 7, "solidity": 0.3, "fgcolor": "var(--invalid)", "bgcolor": "var(--soft)"}
        marker["pattern"] = hatch
    return {
        "type": "bar",
        "orientation": "h",
        "name": escape(choice),
        "x": shares,
        "y": [escape(describe_cell(cell)) for cell in cells],
        "marker": marker,
        "text": [fmt.percent(share) if share >= SMALLEST_LABELLED else "" for share in shares],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "textfont": {"color": "var(--fg)" if choice == INVALID else "var(--on-series)"},
        "hovertext": [
            hover(describe_cell(cell), f"{choice}: {fmt.of(k, cell.n)}, {fmt.percent(share, 1)}")
            for cell, k, share in zip(cells, counts, shares, strict=True)
        ],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
