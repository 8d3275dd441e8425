"""Task `report.patching`: the page of a patching study, and its content as JSON."""

from __future__ import annotations

from tasks.artifacts.shard import Shard
from tasks.context import ShardContext
from tasks.report.patching.collect import Study, collect
from tasks.report.patching.page import render
from tasks.report.run_facts import run_facts


def run(ctx: ShardContext) -> None:
    """File `report.html` (one file, opens offline); json `summary`, the same content for programs."""
    study = open_study(ctx)
    data = collect(study, ctx.params, ctx.seed)
    ctx.json("summary", data.model_dump(mode="json"))
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
