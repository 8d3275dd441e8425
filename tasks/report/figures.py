"""Parts that all figures share: the figure record, text, axes, legend, layout.

Colours are names of the page's style variables ("var(--accent)"); the page resolves them for the light, dark
and print palette. A trace with `meta = {key: option}` is shown while that option is selected. Every point
carries its full text for hovering. Names that come from the user are HTML-escaped, since plotly reads
markup in text.
"""

from __future__ import annotations

import html
import textwrap
from typing import Any

from pydantic import BaseModel, ConfigDict

Spec = dict[str, Any]
FONT = "var(--sans)"
LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
TITLE_WIDTH = 26
"""Characters of an axis title's line at most."""
SYMBOLS = ("circle", "diamond", "triangle-up", "square", "cross")


class Figure(BaseModel):
    """A figure of the page: plotly `data` and `layout`; `alt` says what it shows to a screen reader.

    `width`: it becomes no wider than so many pixels, however wide the page is.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    heading: str
    alt: str
    data: list[Spec]
    layout: Spec
    width: int | None = None


def series(index: int) -> str:
    """Colour of the index-th category; there are four, and symbols tell more apart."""
    return f"var(--series{index % 4})"


def escape(value: object) -> str:
    """Text that plotly shows as it is, without reading markup in it."""
    return html.escape(str(value))


def hover(*lines: str) -> str:
    """Lines of a hover label, escaped."""
    return "<br>".join(escape(line) for line in lines)


def selected(key: str, option: str, default: str, hovertemplate: str = "%{text}<extra></extra>") -> Spec:
    """Properties of a trace that is shown while `option` is selected among the page's choices of the name `key`."""
    return {"meta": {key: option}, "visible": option == default, "hovertemplate": hovertemplate}


def axis(title: str, **more: Any) -> Spec:
    """A quiet axis that cannot be dragged, so that a finger on a plot still scrolls the page.

    A long title gets several lines: plotly cuts what is longer than the figure is high, or wide on a phone.
    """
    lines = "<br>".join(map(escape, textwrap.wrap(title, TITLE_WIDTH)))
    named = {"title": {"text": lines, "standoff": 10, "font": {"size": 12}}} if title else {}
    return named | {
        "fixedrange": True,
        "automargin": True,
        "gridcolor": "var(--grid)",
        "zeroline": False,
        "zerolinecolor": "var(--axis)",
        "zerolinewidth": 1,
        "linecolor": "var(--grid)",
        "ticks": "",
        **more,
    }


def layout(height: int, **more: Any) -> Spec:
    """A transparent plot in the page's font with a legend on top."""
    return {
        "height": height,
        "autosize": True,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": "var(--fg)"},
        "hoverlabel": {
            "bgcolor": "var(--card)",
            "bordercolor": "var(--rule)",
            "font": {"family": FONT, "size": 12, "color": "var(--fg)"},
            "align": "left",
        },
        "hovermode": "closest",
        "dragmode": False,
        "showlegend": True,
        "legend": LEGEND,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 40},
        **more,
    }
