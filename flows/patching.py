"""The patching study as a flow: which SAE features cause a behaviour, and which words do they add or remove?"""

from __future__ import annotations

import re

from prefect import flow
from prefect.runtime import flow_run as this_flow_run

from flows import patching_plan as plan
from flows.engines import require, with_engine
from flows.execution import Execution, StoreLocation
from flows.fanout import FanOut, sweep
from flows.outcome import Outcome, publish
from flows.planning import as_study, last_part
from flows.reports import slug
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tasks.models.spec import ModelInfo, ModelRef
from tasks.patching.load import load_scenario
from tasks.patching.spec import (
    ConfirmSettings,
    ContrastSettings,
    ScenarioRef,
    ScreenSettings,
    SelectionSettings,
    StudySettings,
    TrialSettings,
    VerdictSettings,
    WordsSettings,
)
from tasks.patching.tryout import Tryout
from tasks.sae.spec import SaeSource
from tasks.spec import Seed

DEFAULTS = StudySettings(saes=SaeSource())
EXECUTION = Execution()

STAGES = (
    "identify",
    "prepare",
    "choices",
    "saes",
    "activations",
    "contrast",
    "screen",
    "survivors",
    "trials",
    "verdict",
    "confirmation",
    "final verdict",
    "words",
    "report",
)


def _run_name() -> str:
    parameters = this_flow_run.get_parameters() or {}
    return study_name(ModelRef.model_validate(parameters["model"]), ScenarioRef.model_validate(parameters["scenario"]))


def study_name(model: ModelRef, scenario: ScenarioRef) -> str:
    """ "smollm2-135m-instruct-slot-machine" """
    return slug(f"{last_part(model.source)} {_stem(scenario.source)}")


def _stem(source: str) -> str:
    return re.sub(r"\.ya?ml$", "", last_part(source))


@flow(name="patching", flow_run_name=_run_name, on_cancellation=[sweep], on_crashed=[sweep])
async def patching(
    model: ModelRef = DEFAULTS.model,
    saes: SaeSource = DEFAULTS.saes,
    scenario: ScenarioRef = DEFAULTS.scenario,
    contrast: ContrastSettings = DEFAULTS.contrast,
    screen: ScreenSettings = DEFAULTS.screen,
    selection: SelectionSettings = DEFAULTS.selection,
    trials: TrialSettings = DEFAULTS.trials,
    confirm: ConfirmSettings = DEFAULTS.confirm,
    verdict: VerdictSettings = DEFAULTS.verdict,
    words: WordsSettings = DEFAULTS.words,
    seed: Seed = DEFAULTS.seed,
    store: StoreLocation = "runs/store",
    execution: Execution = EXECUTION,
) -> Outcome:
    """Which SAE features cause a behaviour, and which words do they add or remove?

    Args:
        model: The language model to study.
        saes: Sparse autoencoders of its residual stream; their features are what is patched.
        scenario: Prompts, choices, answer parser and the two groups of prompts to contrast.
        contrast: How candidate features are found, from their activations on two groups of prompts.
        screen: Exact probabilities of each choice under every edit, from the first token's logits.
        selection: Which candidates are sampled after the screen.
        trials: Sampled generations under every condition, controls included.
        confirm: Repetition of the discoveries on held-out seeds.
        verdict: When an effect counts as a discovery.
        words: Which words a feature adds or removes.
        seed: Every random number of the study derives from it.
        store: Where results are kept and found again: a folder, or a URL such as s3://bucket/prefix.
        execution: Where and how the work runs. Device, threads and batch size may change the last digits of a result.
    """
    settings = as_study(
        StudySettings,
        model=model,
        saes=saes,
        scenario=scenario,
        seed=seed,
        contrast=contrast,
        screen=screen,
        selection=selection,
        trials=trials,
        confirm=confirm,
        verdict=verdict,
        words=words,
    )
    target = Store(store)
    page = await _study(settings, target, execution)
    return await publish(page, target, study_name(model, scenario), "patching")


async def _study(settings: StudySettings, store: Store, execution: Execution) -> Shard:
    """Run every stage and return the shard of the report."""
    scenario = load_scenario(settings.scenario.source)
    require(settings.trials.engine, execution)
    async with FanOut(store, execution, STAGES) as fan:
        [identity] = await fan.run("identify", [plan.identify(settings)], gpus=0)
        [prepared] = await fan.run("prepare", [plan.prepare(settings, scenario, identity)], gpus=0)
        found = Shard(store, prepared.spec.path).json("study")
        settings = with_engine(settings, ModelInfo.model_validate(found["model_info"]), execution)
        study = plan.Plan(settings, scenario, found)

        [choices] = await fan.run("choices", [study.choices()])
        for tried in map(Tryout.model_validate, Shard(store, choices.spec.path).json("tryouts")):
            fan.tell(f"prompt {tried.prompt}: {tried.in_words()}")
        trained = settings.saes.kind == "train"
        saes = next(iter(await fan.run("saes", [study.train()] if trained else [])), None)
        activations = await fan.run("activations", study.activations())
        [contrast] = await fan.run("contrast", [study.contrast(activations, saes)])
        if not contrast.counts["candidates"]:
            raise BadInput(
                "contrast",
                settings.contrast.model_dump(),
                "no feature differs enough between the two groups of prompts to be a candidate",
                "raise max_q or max_p, lower min_abs_d, or take more prompts_per_group",
            )
        screen = await fan.run("screen", study.screen(contrast, saes))
        [survivors] = await fan.run("survivors", [study.survivors(contrast, screen)], gpus=0)
        trials = await fan.run("trials", study.discovery(contrast, survivors, saes))
        [verdict] = await fan.run("verdict", [study.verdict(survivors, trials)], gpus=0)
        confirmation = await fan.run("confirmation", study.confirmation(contrast, verdict, saes))
        [verdict] = await fan.run("final verdict", [study.verdict(survivors, trials, confirmation)], gpus=0)
        [words] = await fan.run("words", [study.words(trials)], gpus=0)

        one = {"study": prepared, "contrast": contrast, "survivors": survivors, "verdict": verdict, "words": words}
        several = {"activations": activations, "screen": screen, "trials": trials, "confirmation": confirmation}
        inputs: plan.Inputs = {name: manifest.ref for name, manifest in one.items()}
        inputs |= {name: [part.ref for part in parts] for name, parts in several.items() if parts}
        inputs["choices"] = choices.ref
        if saes:
            inputs["saes"] = saes.ref
        [report] = await fan.run("report", [study.report(inputs)], gpus=0, check=True)
    return Shard(store, report.spec.path)
