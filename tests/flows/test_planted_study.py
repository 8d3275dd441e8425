"""Planted truth: what is there is found, alone; where nothing is, almost nothing is found.

The patching flow as it is, with its shards in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import binom

from flows.execution import Execution
from flows.patching import patching
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.engines.bank import Bank
from tasks.patching.tryout import Tryout
from tasks.runner import run_shard
from tests.flows.finished import finished_stages
from tests.flows.in_process import shards_in_process
from tests.patching.planted import LAYERS, N_TRIALS, PLANTED, PLANTED_LAYER, PREFIX, PROMPTS, plant


@dataclass
class Study:
    """Finished shards by stage."""

    store: Store
    choices: Shard
    contrast: Shard
    screen: list[Shard]
    survivors: Shard
    trials: list[Shard]
    verdict: Shard
    words: Shard


def run(settings: dict[str, Any], store: str) -> Study:
    asyncio.run(patching(**settings, store=store, execution=Execution(device="cpu", slots=2, threads=1)))
    stages = finished_stages(Store(store))
    single = {name: stages[name][0] for name in ("choices", "contrast", "survivors", "verdict", "words")}
    return Study(Store(store), screen=stages["screen"], trials=stages["trials"], **single)


@pytest.fixture(scope="module", autouse=True)
def in_process(prefect_server: str) -> Iterator[None]:
    with shards_in_process():
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return plant(tmp_path_factory.mktemp("planted")).settings()


@pytest.fixture(scope="module")
def study(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOMOGRAPH_RUNTIME_DIR", str(folder / "runtime"))
        return run(settings, str(folder / "store"))


def test_the_planted_feature_is_the_only_discovery_and_is_confirmed(study):
    verdict = study.verdict.table("verdict").to_pylist()
    assert {(row["layer"], row["feature"]) for row in verdict} == {(PLANTED_LAYER, PLANTED)}
    moved = {(row["prompt"], row["choice"]): row["effect"] for row in verdict}
    assert {prompt for prompt, _ in moved} == set(PROMPTS)
    assert all(effect > 0 for (_, choice), effect in moved.items() if choice == "two")
    assert all(effect < 0 for (_, choice), effect in moved.items() if choice == "one")
    assert all(row["confirmed"] and row["specific"] for row in verdict)
    [primary] = [row for row in verdict if row["family"] == "primary"]
    [kept] = [row for row in study.survivors.table("survivors").to_pylist() if row["rank"] == 1]
    assert (primary["candidate"], primary["prompt"], primary["choice"]) == (
        kept["candidate"],
        kept["effect_prompt"],
        kept["effect_choice"],
    )
    assert primary["predicted"] == kept["effect"]
    families = study.verdict.json("findings")["families"]
    assert families["primary"]["tests"] <= len(study.contrast.table("candidates"))
    assert [families[name]["confirmed"] for name in ("primary", "secondary")] == [1, len(verdict) - 1]
    assert all("value tensed raises two" in row["label"] for row in verdict if row["choice"] == "two")


def test_every_candidate_is_sampled_under_every_condition(study):
    trials = pa.concat_tables([shard.table("trials") for shard in study.trials])
    n = len(study.contrast.table("candidates"))
    cells = trials.group_by(["arm", "condition", "candidate", "layer"]).aggregate([("trial", "count")])
    assert pc.all(pc.equal(cells["trial_count"], N_TRIALS)).as_py()
    per_arm = {arm: len(cells.filter(pc.equal(cells["arm"], arm))) for arm in cells["arm"].unique().to_pylist()}
    assert per_arm == {"baseline": 2, "reconstruction": 2 * len(LAYERS), "feature": n * 4, "random": n * 4}
    conditions = {"calm_baseline", "calm_reconstruction", "calm_with_calmed_patch", "calm_with_tensed_patch"}
    assert conditions | {c.replace("calm_", "tense_", 1) for c in conditions} == set(cells["condition"].to_pylist())
    assert len(set(trials["seed"].to_pylist())) == len(trials)


def test_every_edit_was_applied_where_its_scope_says(study):
    for shard in study.trials:
        for row in shard.table("trials").to_pylist():
            assert row["edits_applied"] == (0 if row["arm"] == "baseline" else row["n_tokens"])


def test_activations_of_all_candidates_are_labelled_and_hold_the_patched_value(study):
    """A patched row's own feature reads its patch value where reading and writing are one direction's."""
    bank = Bank.from_tensors(next(study.contrast.torch_tensors("bank")))
    gain = (bank.u * bank.w).sum(-1).numpy()
    candidates = study.contrast.table("candidates").to_pylist()
    for shard in study.trials:
        trials = {row["trial_id"]: row for row in shard.table("trials").to_pylist()}
        labels = shard.table("activation_rows").to_pylist()
        features = np.concatenate([chunk["features"] for chunk in shard.tensors("activations")])
        assert features.shape == (len(labels), len(candidates))
        assert [label["position_kind"] for label in labels] == ["last", "final"] * len(trials)
        for label, row in zip(labels, features, strict=True):
            trial = trials[label["trial_id"]]
            if trial["arm"] != "feature" or label["position_kind"] != "last":
                continue
            i = trial["candidate"]
            # pre' = pre + (v - f) (u . w); where f > 0, pre = f
            if trial["f_before"] > 0:
                expected = max(trial["f_before"] + (trial["value"] - trial["f_before"]) * gain[i], 0)
                assert row[i] == pytest.approx(expected, rel=5e-3, abs=5e-3)


def test_screen_and_samples_agree(study):
    """The exact probability of the first token lies in the band of the sampled frequency, cell by cell."""
    screen = pa.concat_tables([shard.table("screen") for shard in study.screen]).to_pylist()
    trials = pa.concat_tables([shard.table("trials") for shard in study.trials]).to_pylist()
    sampled: dict[tuple, list[bool]] = {}
    for row in trials:
        if row["arm"] in ("feature", "random"):
            key = row["arm"], row["candidate"], row["prompt"], row["value"]
            sampled.setdefault(key, []).append(row["choice"] == "two")
    exact = {
        (row["arm"], row["candidate"], row["prompt"], row["value"]): row["p_two"]
        for row in screen
        if row["dose"] in (0.0, 1.0) and row["arm"] in ("feature", "random")
    }
    assert exact.keys() == sampled.keys()
    for key, answers in sampled.items():
        low, high = binom.interval(1 - 0.01 / len(sampled), len(answers), min(exact[key], 1.0))
        assert low <= sum(answers) <= high, key


def test_masses_are_the_screens_and_answers_the_first_of_the_baseline(study):
    screen = pa.concat_tables([shard.table("screen") for shard in study.screen]).to_pylist()
    trials = pa.concat_tables([shard.table("trials") for shard in study.trials]).to_pylist()
    tryouts = [Tryout.model_validate(one) for one in study.choices.json("tryouts")]
    assert [tryout.prompt for tryout in tryouts] == list(PROMPTS)
    for tryout in tryouts:
        [row] = [row for row in screen if row["prompt"] == tryout.prompt and row["arm"] == "baseline"]
        assert tryout.mass == pytest.approx({"one": row["p_one"], "two": row["p_two"]}, abs=1e-5)
        baseline = [row for row in trials if row["prompt"] == tryout.prompt and row["arm"] == "baseline"]
        said = [(row["response"], row["choice"], row["parse_rule"]) for row in baseline[: len(tryout.answers)]]
        assert [(answer.text, answer.choice, answer.rule) for answer in tryout.answers] == said
        assert {token.text: token.counts_as for token in tryout.next[:2]} == {"1": "one", "2": "two"}
        assert tryout.text == f"<s>{PROMPTS[tryout.prompt]}{PREFIX}" == "".join(tryout.tokens)


def test_a_study_kept_in_s3_holds_the_same_as_one_on_disk(study, settings, s3_url):
    again = run(settings, f"{s3_url}/store")
    for stage in ("contrast", "survivors", "verdict", "words"):
        here, there = getattr(study, stage).manifest, getattr(again, stage).manifest
        assert here.counts == there.counts
        assert [sorted(o.xxh3_128 for o in out.objects) for out in here.outputs.values()] == [
            sorted(o.xxh3_128 for o in out.objects) for out in there.outputs.values()
        ]
    for here, there in zip(study.trials, again.trials, strict=True):
        assert here.manifest.digest == there.manifest.digest


@pytest.mark.slow
def test_null_studies_discover_something_at_most_as_often_as_alpha(tmp_path: Path) -> None:
    """Studies of features that write nothing, each on seeds of its own, at q = 0.05 and any effect size.

    That the statistics alone keep to alpha is shown on 200 in tests/patching/test_families.py.
    """
    quiet = plant(tmp_path).settings(
        saes={"kind": "saelens", "location": str(tmp_path / "saes" / "layer_{layer}"), "layers": [1]},
        contrast={"prompts_per_group": 16, "top_k_per_layer": 3},
        trials={"trials_per_cell": 30, "baseline_trials": 30, "max_new_tokens": 1, "temperature": 1.0},
        confirm={"enabled": False},
        verdict={"min_effect": 0.0},
    )
    study = run(quiet, str(tmp_path / "store"))
    n, found = 12, {"primary": 0, "secondary": 0}
    for seed in range(n):
        specs = [shard.manifest.spec.model_copy(update={"seed": 1000 + seed}) for shard in study.trials]
        trials = [run_shard(study.store, spec) for spec in specs]
        again = study.verdict.manifest.spec
        inputs = again.inputs | {"trials": [manifest.ref for manifest in trials]}
        verdict = Shard(study.store, run_shard(study.store, again.model_copy(update={"inputs": inputs})).spec.path)
        for name, family in verdict.json("findings")["families"].items():
            found[name] += family["discoveries"] > 0
    assert max(found.values()) <= binom.ppf(0.99, n, 0.05)
