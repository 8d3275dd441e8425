"""Planted truth: what is there is found, alone; where nothing is, almost nothing is found."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import binom

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.engines.bank import Bank
from tasks.patching.tryout import Tryout
from tasks.runner import run_shard
from tests.patching.in_process import Study, run_study
from tests.patching.planted import LAYERS, N_TRIALS, PLANTED, PLANTED_LAYER, PREFIX, PROMPTS, plant


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    return plant(tmp_path_factory.mktemp("planted")).settings()


@pytest.fixture(scope="module")
def study(settings, tmp_path_factory) -> Study:
    return run_study(Store(tmp_path_factory.mktemp("store")), settings)


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


def test_a_study_kept_in_s3_holds_the_same_as_one_on_disk(study, settings, s3_store):
    again = run_study(s3_store, settings)
    for stage in ("contrast", "survivors", "verdict", "words"):
        here, there = getattr(study, stage).manifest, getattr(again, stage).manifest
        assert here.counts == there.counts
        assert [sorted(o.xxh3_128 for o in out.objects) for out in here.outputs.values()] == [
            sorted(o.xxh3_128 for o in out.objects) for out in there.outputs.values()
        ]
    for here, there in zip(study.trials, again.trials, strict=True):
        assert here.manifest.digest == there.manifest.digest


@pytest.mark.slow
def test_null_studies_discover_something_at_most_as_often_as_alpha(tmp_path):
    """200 studies of features that write nothing, each on seeds of its own, at q = 0.05 and any effect size."""
    quiet = plant(tmp_path).settings(
        saes={"kind": "saelens", "location": str(tmp_path / "saes" / "layer_{layer}"), "layers": [1]},
        contrast={"prompts_per_group": 16, "top_k_per_layer": 3},
        trials={"trials_per_cell": 30, "baseline_trials": 30, "max_new_tokens": 1, "temperature": 1.0},
        confirm={"enabled": False},
        verdict={"min_effect": 0.0},
    )
    store = Store(tmp_path / "store")
    study = run_study(store, quiet)
    n, found = 200, {"primary": 0, "secondary": 0}
    contrast, survivors = study.contrast.manifest, study.survivors.manifest
    for seed in range(n):
        specs = study.plan.discovery(contrast, survivors, None)
        trials = [run_shard(store, spec.model_copy(update={"seed": 1000 + seed})) for spec in specs]
        verdict = Shard(store, run_shard(store, study.plan.verdict(survivors, trials)).spec.path)
        for name, family in verdict.json("findings")["families"].items():
            found[name] += family["discoveries"] > 0
    assert max(found.values()) <= binom.ppf(0.975, n, 0.05)
