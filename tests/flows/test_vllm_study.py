"""A whole study on the vLLM engine, through flow, launcher and store, beside the same study on the torch engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.execution import Execution
from flows.launchers.environments import check
from flows.patching import patching
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tests.flows.in_process import shards_in_process
from tests.patching.planted import PLANTED, PLANTED_LAYER, PROMPTS, plant
from tests.requirements import need

pytestmark = pytest.mark.slow

ENGINES = ("torch", "vllm")
HEAD_DIM = 32
"""The smallest that vLLM's attention on CPUs has."""


@pytest.fixture(scope="module", autouse=True)
def vllm() -> None:
    try:
        check("vllm", "cpu")
    except BadInput as error:
        need("vllm-environment", False, f"{error.problem}; {error.remedy}")


@pytest.fixture(scope="module")
def store(vllm: None, tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Store:
    """The planted study, run with each engine. What the engine does not decide runs once."""
    folder = tmp_path_factory.mktemp("planted")
    settings = plant(folder, head_dim=HEAD_DIM).settings(
        contrast={"prompts_per_group": 16, "top_k_per_layer": 3},
        trials={"trials_per_cell": 40, "baseline_trials": 40, "max_new_tokens": 3, "temperature": 1.0},
        confirm={"trials_per_cell": 40},
    )
    execution = Execution(device="cpu", slots=1, threads=1)
    with pytest.MonkeyPatch.context() as patch, shards_in_process():
        patch.setenv("TOMOGRAPH_RUNTIME_DIR", str(folder / "runtime"))
        for engine in ENGINES:
            settings["trials"]["engine"] = engine
            asyncio.run(patching(**settings, store=str(folder / "store"), execution=execution))
    return Store(folder / "store")


def shards(store: Store, task: str) -> list[Shard]:
    return [Shard(store, f"shards/{task}/{folder.name}") for folder in (Path(store.url) / "shards" / task).iterdir()]


def of_engine(store: Store, engine: str) -> Iterator[Shard]:
    """The shards of trials that ran on an engine."""
    return (one for one in shards(store, "patching.trials") if one.manifest.spec.params["engine"] == engine)


def trials(store: Store, engine: str) -> dict[int, dict[str, Any]]:
    """All trials, by their ids, which name a trial across engines."""
    return {row["trial_id"]: row for one in of_engine(store, engine) for row in one.table("trials").to_pylist()}


def test_each_engine_ran_its_own_trials_and_nothing_else_twice(store: Store) -> None:
    ran = [
        one.manifest.spec.task
        for folder in (Path(store.url) / "shards").iterdir()
        for one in shards(store, folder.name)
    ]
    assert {task: ran.count(task) for task in set(ran)} == {
        "patching.identify": 1,
        "patching.prepare": 1,
        "patching.choices": 1,
        "patching.activations": 1,
        "patching.contrast": 1,
        "patching.screen": 1,
        "patching.survivors": 1,
        "patching.trials": 2 * 3,
        "patching.verdict": 2 * 2,
        "patching.words": 2,
        "patching.report": 2,
    }


def test_the_planted_feature_is_the_only_discovery_with_either_engine(store: Store) -> None:
    final = [one for one in shards(store, "patching.verdict") if "confirmation" in one.manifest.spec.inputs]
    assert len(final) == len(ENGINES)
    for one in final:
        found = one.table("verdict").to_pylist()
        assert {(row["layer"], row["feature"]) for row in found} == {(PLANTED_LAYER, PLANTED)}
        assert {row["prompt"] for row in found} == set(PROMPTS)
        assert all(row["confirmed"] for row in found)
        assert [row["specific"] for row in found if row["family"] == "primary"] == [True]


def test_a_trial_is_the_same_with_either_engine(store: Store) -> None:
    """The seed draws the same tokens, but where an edge of the cumulative distribution lies within rounding of it.

    The tiny model spreads its probability over 400 tokens, so there are many edges: about one draw in 3,000.
    """
    on_torch, on_vllm = (trials(store, engine) for engine in ENGINES)
    assert on_torch.keys() == on_vllm.keys()
    same = [on_torch[id]["tokens"] == on_vllm[id]["tokens"] for id in on_torch]
    assert sum(same) >= 0.995 * len(same)
    for id, row in on_torch.items():
        other = on_vllm[id]
        assert (row["f_before"] is None) == (other["f_before"] is None)
        if row["f_before"] is not None:
            assert other["f_before"] == pytest.approx(row["f_before"], rel=1e-4, abs=1e-4)
            assert other["relative_delta"] == pytest.approx(row["relative_delta"], rel=1e-3, abs=1e-4)


def test_captures_are_the_same_with_either_engine(store: Store) -> None:
    def last_rows(engine: str) -> dict[int, Any]:
        """Activations at the last position of the prompt, which no sampled token precedes, by trial."""
        return {
            label["trial_id"]: features
            for one in of_engine(store, engine)
            for tensors in [list(one.tensors("activations"))]
            for label, features in zip(
                one.table("activation_rows").to_pylist(),
                (row for part in tensors for row in part["features"]),
                strict=True,
            )
            if label["position_kind"] == "last"
        }

    on_torch, on_vllm = (last_rows(engine) for engine in ENGINES)
    assert on_torch.keys() == on_vllm.keys() == trials(store, "torch").keys()
    for id, features in on_torch.items():
        assert on_vllm[id] == pytest.approx(features, rel=2e-3, abs=2e-3)


def test_manifests_and_reports_say_what_ran(store: Store) -> None:
    for engine in ENGINES:
        for one in of_engine(store, engine):
            facts = one.manifest.run["notes"]["engine"]
            assert facts["name"] == engine
            assert facts["version"][0].isdigit()
            assert facts["batch_size"] >= 1
            assert ("vllm" in one.manifest.run["versions"]) == (engine == "vllm")
        said = f"{engine} {facts['version']} with up to {facts['batch_size']} trials at a time"
        pages = [page.read_text() for page in Path(store.url).glob("reports/*/report.html")]
        assert [said in page for page in pages].count(True) == 1
    settings = [one.manifest.spec.params["settings"] for one in shards(store, "patching.report")]
    assert {asked["trials"]["engine"] for asked in settings} == set(ENGINES)
