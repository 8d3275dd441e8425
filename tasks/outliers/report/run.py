"""Task `outliers.report`: the page of one model or of a sweep, and the same in short as JSON."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.context import READERS, ShardContext
from tasks.errors import BadInput
from tasks.outliers.report.collect import Examined, collect, stages
from tasks.outliers.report.page import render
from tasks.outliers.report.summary import summarize
from tasks.outliers.spec import ReportParams
from tasks.report.run_facts import run_facts
from tasks.spec import InputRef


def run(ctx: ShardContext) -> None:
    """File `report.html` (one file, opens offline); json `summary`.

    Raises:
        ValueError: there are not as many shards as models.
    """
    params: ReportParams = ctx.params
    models = open_models(ctx, params)
    data = collect(models, params)
    ctx.json("summary", summarize(data, models).model_dump(mode="json"))
    ctx.file("report.html", render(data, run_facts(stages(models))).encode())
    ctx.count(models=len(data.models), failures=len(data.failures))


def open_models(ctx: ShardContext, params: ReportParams) -> list[Examined]:
    """Readers of the spec's inputs, by model."""

    def several(name: str) -> list[Shard]:
        return ctx.inputs(name) if name in ctx.spec.inputs else []

    checked = several("ablation")
    if len(checked) != sum(model.ablation for model in params.models):
        raise ValueError(f"{len(checked)} ablations for {sum(model.ablation for model in params.models)} models")
    following = iter(checked)
    return [
        Examined(model, prepared, summary, next(following) if model.ablation else None, scans_of(ctx.store, summary))
        for model, prepared, summary in zip(params.models, several("prepared"), several("summary"), strict=True)
    ]


def scans_of(store: Store, summary: Shard) -> list[Shard]:
    """The shards that the summary names as its scans; those that were deleted or redone since are left out."""
    named = summary.manifest.spec.inputs.get("scans", [])
    refs = [named] if isinstance(named, InputRef) else named

    def opened(ref: InputRef) -> Shard | None:
        try:
            return Shard.open(store, ref)
        except BadInput:
            return None

    with ThreadPoolExecutor(READERS) as pool:
        return [shard for shard in pool.map(opened, refs) if shard is not None]
