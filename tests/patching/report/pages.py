"""Building a report from synthetic stages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.patching.report.data import ReportData
from tasks.patching.spec import REPORT
from tasks.report.summary import Summary
from tasks.runner import run_shard
from tests.patching.report import synthetic


@dataclass
class Report:
    """A finished report with the tables it was made from."""

    stages: dict[str, list[synthetic.Stage]]
    shard: Shard
    data: ReportData
    html: str

    @property
    def summary(self) -> Summary:
        return Summary.model_validate(self.shard.json("summary"))

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
    manifest = run_shard(store, REPORT.spec(synthetic.params(**params), inputs, seed=11))
    shard = Shard(store, manifest.spec.path)
    html = shard.file("report.html").decode()
    return Report(stages, shard, ReportData.model_validate(shard.json("content")), html)
