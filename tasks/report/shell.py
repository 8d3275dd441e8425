"""The shell of every report: one HTML page that needs nothing else, no network and no second file.

A job's page is in the folder `report` of its room: a template that extends `shell.html.j2`, and a stylesheet.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tasks.report import numbers as fmt
from tasks.report.figures import Figure
from tasks.report.records import RunFacts


def render(
    job: str,
    *,
    title: str,
    sections: Sequence[tuple[str, str]],
    figures: Sequence[Figure],
    run: RunFacts,
    **content: Any,
) -> str:
    """The page of `tasks/<job>/report`: its `templates/<job>.html.j2` and `.css` in the shell, filled with `content`.

    `sections` are (anchor, name) for the navigation, `figures` all that the page shows. `run` lands in
    `<script type="application/json" id="run">` and nowhere else.
    """
    specs = {figure.id: {"data": figure.data, "layout": figure.layout} for figure in figures}
    plotly, script = get_plotlyjs(), _asset("tasks.report", "report.js")
    css = _asset("tasks.report", "report.css") + _asset(f"tasks.{job}.report", f"{job}.css")
    return (
        _environment(job)
        .get_template(f"{job}.html.j2")
        .render(
            title=title,
            sections=sections,
            fmt=fmt,
            css=Markup(css),
            plotly=Markup(plotly),
            script=Markup(script),
            script_hashes=Markup(f"{_csp_hash(plotly)} {_csp_hash(script)}"),
            figures_json=_json(specs),
            run_json=_json(run.model_dump(mode="json")),
            **content,
        )
    )


def _json(value: Any) -> Markup:
    """Compact, with nothing in it that could end its script element."""
    return htmlsafe_json_dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _csp_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _asset(package: str, name: str) -> str:
    return files(package).joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment(job: str) -> Environment:
    return Environment(
        loader=ChoiceLoader([PackageLoader(f"tasks.{job}.report"), PackageLoader("tasks.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
