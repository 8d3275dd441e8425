"""Systematic outlier dimensions as a flow: of one model, or of a sweep whose models run side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from prefect import flow
from prefect.runtime import flow_run as this_flow_run
from pydantic import Field, TypeAdapter

from flows import outliers_plan as plan
from flows.execution import Execution, StoreLocation
from flows.fanout import FanOut, StageFailed, sweep
from flows.outcome import Outcome, publish
from flows.outliers_model import ModelRun
from flows.outliers_plan import Examination, OutlierSettings, SweepModel
from flows.planning import as_study
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.errors import EXIT_FAILED, BadInput
from tasks.outliers.spec import AblationSettings, Criteria, Site
from tasks.spec import LARGEST_BATCH, Seed
from tasks.text.spec import TextSource

DEFAULTS = OutlierSettings()
EXECUTION = Execution()


def _run_name() -> str:
    parameters = this_flow_run.get_parameters() or {}
    return plan.study_name(TypeAdapter(list[SweepModel]).validate_python(parameters["models"]))


@flow(name="outliers", flow_run_name=_run_name, on_cancellation=[sweep], on_crashed=[sweep])
async def outliers(
    models: Annotated[list[SweepModel], Field(min_length=1)] = DEFAULTS.models,
    text: TextSource = DEFAULTS.text,
    sites: Annotated[list[Site], Field(min_length=1)] = DEFAULTS.sites,
    criteria: Criteria = DEFAULTS.criteria,
    batch_size: Annotated[int, Field(ge=1, le=LARGEST_BATCH)] = DEFAULTS.batch_size,
    ablation: AblationSettings = DEFAULTS.ablation,
    seed: Seed = DEFAULTS.seed,
    store: StoreLocation = "runs/store",
    execution: Execution = EXECUTION,
) -> Outcome:
    """Which hidden dimensions are systematic outliers, in a model or across a sweep of models?

    Args:
        models: The models to examine, side by side; on the command line `--models org/one --models org/two`, or JSON
            for more than a source. One that fails is reported, and the others go on.
        text: What the models read.
        sites: Where to watch: `norms`, what enters each block's attention and FFN; `residual`, what leaves each block.
        criteria: When an activation is an outlier, and when a dimension is a systematic one.
        batch_size: Sequences in one forward pass; it decides the last bits of a result.
        ablation: The functional check: what a model loses when the found dimensions are set to zero.
        seed: The random dimensions and the intervals of the functional check derive from it.
        store: Where results are kept and found again: a folder, or a URL such as s3://bucket/prefix.
        execution: Where and how the work runs. Device and threads may change the last digits of a result.
    """
    settings = as_study(
        OutlierSettings,
        models=models,
        text=text,
        sites=sites,
        criteria=criteria,
        batch_size=batch_size,
        ablation=ablation,
        seed=seed,
    )
    todo = plan.examinations(settings)
    _check(execution, todo)
    target = Store(store)
    page = await _study(settings, todo, target, execution)
    return await publish(page, target, plan.study_name(settings.models), "outliers")


async def _study(settings: OutlierSettings, todo: Sequence[Examination], store: Store, execution: Execution) -> Shard:
    """Examine all models and return the shard of the report."""
    models = [ModelRun(one, store, alone=len(todo) == 1) for one in todo]
    stages = [title for model in models for title in model.titles]
    async with FanOut(store, execution, [*stages, "report"]) as fan:
        try:
            async with asyncio.TaskGroup() as group:
                for model in models:
                    group.create_task(model.examine(fan))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        examined = [model.examined for model in models if model.examined]
        failures = [model.failure for model in models if model.failure]
        if not examined:
            raise _none_examined(models)
        [report] = await fan.run("report", [plan.report_of(settings, examined, failures)], gpus=0, check=True)
    return Shard(store, report.spec.path)


def _none_examined(models: Sequence[ModelRun]) -> Exception:
    """The error of a study in which every model failed."""
    if len(models) == 1 and models[0].error:
        return models[0].error
    ends = {getattr(model.error, "exit_status", EXIT_FAILED) for model in models}
    return StageFailed(
        "\n".join(["no model could be examined", *(f"- {model.failure}" for model in models)]),
        exit_status=ends.pop() if len(ends) == 1 else EXIT_FAILED,
    )


def _check(execution: Execution, todo: Sequence[Examination]) -> None:
    """Refuse what this machine can't do, and what would be ignored, before anything runs.

    Raises:
        BadInput: naming the parameter and the remedy.
    """
    if execution.batch_size is not None:
        problem = "a batch decides the last bits of a result here, so it belongs to the study"
        raise BadInput("execution.batch_size", execution.batch_size, problem, "set batch_size, or models.0.batch_size")
    slots = execution.make_launcher().slots(device=execution.device, count=execution.slots, threads=None)
    for number, one in enumerate(todo):
        if slots.device == "cuda" and one.model.gpus > len(slots):
            problem = f"there are {len(slots)} GPUs to run shards on"
            remedy = "ask for fewer, or raise execution.slots where that is the limit"
            raise BadInput(f"models.{number}.gpus", one.model.gpus, problem, remedy)
