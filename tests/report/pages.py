"""Building a report from synthetic stages, and opening it in a browser."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.report.data import ReportData
from tasks.report.spec import PATCHING
from tasks.runner import run_shard
from tests.report import synthetic


@dataclass
class Report:
    """A finished report with the tables it was made from."""

    stages: dict[str, list[synthetic.Stage]]
    shard: Shard
    data: ReportData
    html: str

    def rows(self, stage: str, table: str) -> list[dict]:
        return [row for part in self.stages[stage] for row in part.tables[table].to_pylist()]

    @property
    def without_run(self) -> str:
        """The page without the one element that may differ between equal studies."""
        page, blocks = re.subn(r'(?<=<script type="application/json" id="run">).*?(?=</script>)', "", self.html)
        assert blocks == 1
        return page


def build(folder: Path, stages: dict[str, list[synthetic.Stage]], host: str = "worker-1", **params) -> Report:
    """Run the report's task on these stages in a new store."""
    store = Store(folder)
    inputs = synthetic.write(store, stages, host)
    manifest = run_shard(store, PATCHING.spec(synthetic.params(**params), inputs, seed=11))
    shard = Shard(store, manifest.spec.path)
    html = shard.file("report.html").decode()
    return Report(stages, shard, ReportData.model_validate(shard.json("summary")), html)


@dataclass
class Opened:
    """A page in the browser and all that went wrong in it."""

    page: Page
    console: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def open_page(browser: Browser, report: Report, folder: Path) -> Opened:
    """The report opened from a file, offline, on a laptop's screen in light colours."""
    path = folder / "report.html"
    path.write_text(report.html, encoding="utf-8")
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light", offline=True)
    opened = Opened(context.new_page())
    opened.page.on("console", lambda message: opened.console.append(f"{message.type}: {message.text}"))
    opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(path.as_uri())
    return opened
