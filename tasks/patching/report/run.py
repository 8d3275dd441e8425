"""Task `patching.report`: the page of a patching study, its content as JSON, and both in short."""

from __future__ import annotations

from tasks.artifacts.shard import Shard
from tasks.context import ShardContext
from tasks.patching.report.collect import Study, collect
from tasks.patching.report.page import render
from tasks.patching.report.summary import summarize
from tasks.report.run_facts import run_facts


def run(ctx: ShardContext) -> None:
    """File `report.html` (one file, opens offline); json `summary`; json `content`, all that the page shows."""
    study = open_study(ctx)
    data = collect(study, ctx.params, ctx.seed)
    ctx.json("summary", summarize(data).model_dump(mode="json"))
    ctx.json("content", data.model_dump(mode="json"))
    ctx.file("report.html", render(data, run_facts(study.stages())).encode())
    families = data.numbers.primary, data.numbers.secondary
    ctx.count(discoveries=sum(f.discoveries for f in families), confirmed=sum(f.confirmed for f in families))


def open_study(ctx: ShardContext) -> Study:
    """Readers of the spec's inputs."""

    def several(name: str) -> list[Shard]:
        return ctx.inputs(name) if name in ctx.spec.inputs else []

    return Study(
        study=ctx.input("study"),
        contrast=ctx.input("contrast"),
        survivors=ctx.input("survivors"),
        verdict=ctx.input("verdict"),
        words=ctx.input("words"),
        screen=several("screen"),
        trials=several("trials"),
        confirmation=several("confirmation"),
        activations=several("activations"),
        saes=ctx.input("saes") if "saes" in ctx.spec.inputs else None,
        choices=ctx.input("choices") if "choices" in ctx.spec.inputs else None,
    )
