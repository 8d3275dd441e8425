"""A patching study without Prefect: the flow's own plan, each shard run in this process."""

from __future__ import annotations

from dataclasses import dataclass

from flows import patching_plan as plan
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.patching.load import load_scenario
from tasks.patching.spec import StudySettings
from tasks.runner import run_shard
from tasks.spec import TaskSpec


@dataclass
class Study:
    """Finished shards by stage."""

    store: Store
    plan: plan.Plan
    choices: Shard
    contrast: Shard
    screen: list[Shard]
    survivors: Shard
    trials: list[Shard]
    verdict: Shard
    confirmation: list[Shard]
    words: Shard


def run_study(store: Store, settings: dict) -> Study:
    checked = StudySettings.model_validate(settings).with_engine("torch")
    scenario = load_scenario(checked.scenario.source)

    def run(spec: TaskSpec) -> Manifest:
        return run_shard(store, spec)

    def shard(manifest: Manifest) -> Shard:
        return Shard(store, manifest.spec.path)

    prepared = run(plan.prepare(checked, scenario, run(plan.identify(checked))))
    study = plan.Plan(checked, scenario, shard(prepared).json("study"))
    choices = run(study.choices())
    saes = run(study.train()) if checked.saes.kind == "train" else None
    contrast = run(study.contrast([run(spec) for spec in study.activations()], saes))
    screen = [run(spec) for spec in study.screen(contrast, saes)]
    survivors = run(study.survivors(contrast, screen))
    trials = [run(spec) for spec in study.discovery(contrast, survivors, saes)]
    first = run(study.verdict(survivors, trials))
    confirmation = [run(spec) for spec in study.confirmation(contrast, first, saes)]
    verdict = run(study.verdict(survivors, trials, confirmation))
    words = run(study.words(trials))
    return Study(
        store,
        study,
        shard(choices),
        shard(contrast),
        [shard(m) for m in screen],
        shard(survivors),
        [shard(m) for m in trials],
        shard(verdict),
        [shard(m) for m in confirmation],
        shard(words),
    )
