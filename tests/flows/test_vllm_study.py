"""A whole study on the vLLM engine, through flow, launcher and store, beside the same study on the torch engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.launchers.environments import check
from tasks.artifacts.catalog import load_spec
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tests.patching.planted import PLANTED, PLANTED_LAYER, PROMPTS, plant
from tests.requirements import need

pytestmark = pytest.mark.slow

HEAD_DIM = 32
"""The smallest that vLLM's attention on CPUs has."""


@pytest.fixture(scope="module", autouse=True)
def vllm() -> None:
    try:
        check("vllm", "cpu")
    except BadInput as error:
        need("vllm-environment", False, f"{error.problem}; {error.remedy}")


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> dict[str, Store]:
    """Stores of the planted study, run once with each engine."""
    folder = tmp_path_factory.mktemp("planted")
    settings = plant(folder, head_dim=HEAD_DIM).settings(
        contrast={"prompts_per_group": 16, "top_k_per_layer": 3},
        trials={"trials_per_cell": 40, "baseline_trials": 40, "max_new_tokens": 3, "temperature": 1.0},
        confirm={"trials_per_cell": 40},
    )
    settings["execution"] = {"device": "cpu", "slots": 1, "threads": 1}
    stores = {}
    for engine in ("torch", "vllm"):
        file, store = folder / f"{engine}.yaml", folder / f"store-{engine}"
        file.write_text(yaml.safe_dump(settings | {"trials": settings["trials"] | {"engine": engine}}))
        command = [sys.executable, "-m", "flows", "patching", "--config", str(file), "--store", str(store)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        stores[engine] = Store(store)
    return stores


def shards(store: Store, task: str) -> list[Shard]:
    folders = sorted((Path(store.url) / "shards" / task).iterdir())
    return [Shard(store, f"shards/{task}/{folder.name}") for folder in folders]


def verdict(store: Store) -> list[dict[str, Any]]:
    """Rows of the final verdict."""
    [final] = [one for one in shards(store, "patching.verdict") if "confirmation" in one.manifest.spec.inputs]
    return final.table("verdict").to_pylist()


def trials(store: Store) -> dict[int, dict[str, Any]]:
    """All trials, by their ids, which name a trial across engines."""
    return {row["trial_id"]: row for one in shards(store, "patching.trials") for row in one.table("trials").to_pylist()}


def test_the_planted_feature_is_the_only_discovery_with_either_engine(studies: dict[str, Store]) -> None:
    for store in studies.values():
        found = verdict(store)
        assert {(row["layer"], row["feature"]) for row in found} == {(PLANTED_LAYER, PLANTED)}
        assert {row["prompt"] for row in found} == set(PROMPTS)
        assert all(row["confirmed"] and row["specific"] for row in found)


def test_a_trial_is_the_same_with_either_engine(studies: dict[str, Store]) -> None:
    """The seed draws the same tokens, wherever no probability lies within rounding of the number drawn."""
    on_torch, on_vllm = trials(studies["torch"]), trials(studies["vllm"])
    assert on_torch.keys() == on_vllm.keys()
    same = [on_torch[id]["tokens"] == on_vllm[id]["tokens"] for id in on_torch]
    assert sum(same) >= 0.999 * len(same)
    for id, row in on_torch.items():
        other = on_vllm[id]
        assert (row["f_before"] is None) == (other["f_before"] is None)
        if row["f_before"] is not None:
            assert other["f_before"] == pytest.approx(row["f_before"], rel=1e-4, abs=1e-4)
            assert other["relative_delta"] == pytest.approx(row["relative_delta"], rel=1e-3, abs=1e-4)


def test_manifests_and_report_say_what_ran(studies: dict[str, Store]) -> None:
    for engine, store in studies.items():
        for one in shards(store, "patching.trials"):
            assert one.manifest.spec.params["engine"] == engine
            facts = one.manifest.run["notes"]["engine"]
            assert facts["name"] == engine
            assert facts["version"][0].isdigit()
            assert facts["batch_size"] >= 1
            assert ("vllm" in one.manifest.run["versions"]) == (engine == "vllm")
        for one in shards(store, "patching.screen"):
            assert "vllm" not in one.manifest.run["versions"]
        [page] = Path(store.url).glob("reports/*/report.html")
        assert (
            f"{facts['name']} {facts['version']} with up to {facts['batch_size']} trials at a time" in page.read_text()
        )


def test_no_spec_leaves_the_engine_open(studies: dict[str, Store]) -> None:
    for store in studies.values():
        for one in shards(store, "report.patching"):
            assert load_spec(store, f"{one.manifest.spec.path}/spec.json").params["settings"]["trials.engine"] != "auto"
