"""Building a report from synthetic examinations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.outliers.report.collect import Examined, collect
from tasks.outliers.report.data import OutliersData
from tasks.outliers.spec import REPORT, ExaminedModel, ReportParams
from tasks.report.summary import Summary
from tasks.runner import run_shard
from tests.outliers.report.synthetic import Examination, write


@dataclass
class Report:
    """A finished report with the examinations it was made from."""

    examined: list[Examination]
    shard: Shard
    data: OutliersData
    html: str = field(repr=False)

    @property
    def summary(self) -> Summary:
        return Summary.model_validate(self.shard.json("summary"))


def build(folder: Path, examined: list[Examination], host: str = "worker-1", **params) -> Report:
    """Run the report's task on these models in a new store."""
    store = Store(folder)
    inputs = write(store, examined, host)
    models = [
        ExaminedModel(name=e.world.name, source=e.world.source, folder=f"model-{i}", ablation=e.ablation is not None)
        for i, e in enumerate(examined)
    ]
    settings = {"criteria": {"threshold": 6.0}}
    given = ReportParams.model_validate({"models": models, "settings": settings} | params)
    manifest = run_shard(store, REPORT.spec(given, inputs))
    shard = Shard(store, manifest.spec.path)
    data = collect(opened(store, given.models, inputs), given)
    return Report(examined, shard, data, shard.file("report.html").decode())


def opened(store: Store, models: Sequence[ExaminedModel], inputs: dict) -> list[Examined]:
    """Readers of the shards, as the task opens them."""
    checked = iter(inputs.get("ablation", []))
    return [
        Examined(
            model,
            Shard.open(store, prepared),
            Shard.open(store, summary),
            Shard.open(store, next(checked)) if model.ablation else None,
        )
        for model, prepared, summary in zip(models, inputs.get("prepared", []), inputs.get("summary", []), strict=True)
    ]
