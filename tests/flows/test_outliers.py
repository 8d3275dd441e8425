"""Outlier studies as a user runs them: real models, server and store, with the shards in threads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterName,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)

from flows import outliers_plan
from flows.execution import Execution
from flows.fanout import StageFailed
from flows.outcome import Outcome
from flows.outliers import outliers
from tasks import runner
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store
from tasks.outliers.spec import ABLATION
from tasks.spec import TaskSpec
from tests.flows.in_process import shards_in_process
from tests.models.tiny import save_tiny_model

pytestmark = pytest.mark.slow

EXECUTION = Execution(device="cpu", slots=2, threads=1)
STUDY: dict[str, Any] = {
    "text": {"length": 64, "sequences": 24},
    "criteria": {"threshold": 2.0},  # what the tiny models' norms give exceeds it here and there
    "ablation": {"sequences": 4, "random_draws": 2},
    "batch_size": 2,
}


@pytest.fixture(scope="module", autouse=True)
def in_process(prefect_server: str) -> Iterator[None]:
    with shards_in_process():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two models, and one that is damaged."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "dense", "llama")
    save_tiny_model(folder / "experts", "olmoe")
    damaged = save_tiny_model(folder / "damaged", "llama", seed=1)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def run(folder: Path, store: Path, *names: str, called: str | None = None, **parameters: Any) -> Outcome:
    """Examine the models of these names, in a flow run that is called as given."""
    models = [str(folder / name) for name in names]
    values = STUDY | {"execution": EXECUTION} | parameters
    flow = outliers.with_options(flow_run_name=called) if called else outliers
    return asyncio.run(flow(models=models, store=str(store), **values))


def shards(store: Path) -> dict[str, list[Path]]:
    """Manifests by kind of shard."""
    found: dict[str, list[Path]] = {}
    for path in sorted(store.glob("shards/*/*/manifest.json")):
        found.setdefault(path.parts[-3], []).append(path)
    return found


def inodes(store: Path) -> dict[Path, int]:
    """A manifest that is written again is another file."""
    return {path: path.stat().st_ino for several in shards(store).values() for path in several}


async def seen(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Artifacts by key, and states of the task runs by name, of the flow run of this name."""
    async with get_client() as client:
        [run] = await client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
        artifacts = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
        tasks = await client.read_task_runs(
            task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run.id]))
        )
    return {one.key: one for one in artifacts}, {task.name: task.state_name for task in tasks}


@pytest.fixture(scope="module")
def swept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A sweep of two models, with a damaged one between them: store and outcome."""
    store = tmp_path_factory.mktemp("stores") / "swept"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOMOGRAPH_RUNTIME_DIR", str(store.with_name("runtime")))
        outcome = run(folder, store, "dense", "damaged", "experts", called="swept")
    return store, outcome


def test_a_model_that_fails_is_reported_and_the_others_go_on(swept: tuple[Path, Outcome]) -> None:
    store, outcome = swept
    assert {kind: len(found) for kind, found in shards(store).items()} == {
        "outliers.prepare": 2,
        "outliers.scan": 2,
        "outliers.summary": 2,
        "outliers.ablation": 2,
        "outliers.report": 1,
    }
    [failure] = outcome.failures
    assert failure.startswith("damaged (prepare): refused its input: model.source = ")
    assert "its weights cannot be loaded" in failure
    assert len(outcome.findings) == 2
    page = Path(outcome.report).read_text()
    assert all(name in page for name in ("dense", "experts", "damaged", "its weights cannot be loaded"))


def test_each_model_leaves_its_results_beside_the_report(swept: tuple[Path, Outcome]) -> None:
    store, outcome = swept
    report = Path(outcome.report)
    assert report.parent.parent == store / "reports"
    assert report.parent.name.startswith("outliers-dense-and-2-more-")
    assert sorted(path.name for path in report.parent.iterdir()) == ["dense", "experts", "report.html"]
    for name in ("dense", "experts"):
        found = json.loads((report.parent / name / "final_analysis_results.json").read_bytes())
        assert found["analysis_summary"]["total_sequences"] == 24
        assert found["run_config"]["experiment_name"] == name
        assert found["all_systematic_outliers"]


def test_the_ui_shows_the_models_in_numbers_and_what_failed(swept: tuple[Path, Outcome]) -> None:
    artifacts, tasks = asyncio.run(seen("swept"))
    rows = json.loads(artifacts["outliers-models"].data)
    assert [row["model"] for row in rows] == ["dense", "experts"]
    assert all(row["systematic dimensions"].endswith("of 64") for row in rows)
    assert all(row["perplexity ratio with them (or the largest) at zero"] != "–" for row in rows)
    assert "active" in rows[1]["parameters"]
    assert "active" not in rows[0]["parameters"]
    assert "**damaged** (prepare): refused its input" in artifacts["outliers-summary"].data
    assert "report.html" in artifacts["outliers-report"].data
    assert artifacts["outliers-progress"].data == 100
    stages = {artifact.key for artifact in artifacts.values() if "-stage-" in artifact.key}
    assert {"outliers-stage-02-scan-dense", "outliers-stage-13-report"} <= stages
    assert [state for name, state in tasks.items() if "damaged" in name] == ["Failed"]


def test_a_second_run_writes_nothing(swept: tuple[Path, Outcome], folder: Path) -> None:
    store, outcome = swept
    before = inodes(store)
    again = run(folder, store, "dense", "damaged", "experts")
    assert again == outcome
    assert inodes(store) == before


def test_a_model_alone_has_plain_stages_and_the_same_shards(swept: tuple[Path, Outcome], folder: Path) -> None:
    store, _ = swept
    before = inodes(store)
    outcome = run(folder, store, "dense", called="alone")
    assert Path(outcome.report).parent.name.startswith("outliers-dense-")
    assert outcome.failures == []
    new = [path.parts[-3] for path in inodes(store).keys() - before.keys()]
    assert new == ["outliers.report"]
    assert {name.split()[0] for name in asyncio.run(seen("alone"))[1]} == {"prepare", "report"}


def test_a_cut_of_the_work_changes_no_result(
    swept: tuple[Path, Outcome], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outliers_plan, "FEWEST_TOKENS_PER_SHARD", 300)
    outcome = run(folder, tmp_path / "cut", "experts")
    assert len(shards(tmp_path / "cut")["outliers.scan"]) == 24 * 64 // 300
    whole = Path(swept[1].report).parent / "experts" / "final_analysis_results.json"
    assert (Path(outcome.report).parent / "experts" / "final_analysis_results.json").read_bytes() == whole.read_bytes()


def test_without_the_functional_check_there_is_no_such_stage(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "store", "dense", called="unchecked", ablation={"enabled": False})
    assert "outliers.ablation" not in shards(tmp_path / "store")
    assert {name.split()[0] for name in asyncio.run(seen("unchecked"))[1]} == {"prepare", "scan", "summary", "report"}


@pytest.mark.parametrize(
    "parameters", [{"criteria": {"threshold": 1000.0}}, {"sites": ["residual"]}], ids=["nothing found", "no norms"]
)
def test_nothing_to_check_is_nothing_to_do(folder: Path, tmp_path: Path, parameters: dict[str, Any]) -> None:
    outcome = run(folder, tmp_path / "store", "dense", **parameters)
    assert outcome.failures == []
    found = shards(tmp_path / "store")
    assert "outliers.ablation" not in found
    assert len(found["outliers.report"]) == 1


def test_when_only_the_functional_check_fails_the_results_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's files change when it has been scanned."""
    weights = save_tiny_model(tmp_path / "dense") / "model.safetensors"
    run_shard = runner.run_shard

    def changed_before_the_check(store: Store, spec: TaskSpec, *others: Any) -> Manifest:
        if spec.task == ABLATION.name:
            changed = weights.with_suffix(".new")
            changed.write_bytes(weights.read_bytes()[:-1000])
            changed.replace(weights)
        return run_shard(store, spec, *others)

    monkeypatch.setattr(runner, "run_shard", changed_before_the_check)
    outcome = run(tmp_path, tmp_path / "store", "dense")
    [failure] = outcome.failures
    assert failure.startswith("dense (ablation): refused its input: model.source = ")
    assert "the model changed" in failure
    report = Path(outcome.report)
    assert (report.parent / "dense" / "final_analysis_results.json").exists()
    assert "the model changed" in report.read_text()


def test_on_a_cpu_the_number_of_gpus_means_nothing(folder: Path, tmp_path: Path) -> None:
    models = [{"source": str(folder / "dense"), "gpus": 64}]
    values = STUDY | {"ablation": {"enabled": False}}
    outcome = asyncio.run(outliers(models=models, store=str(tmp_path), execution=EXECUTION, **values))
    assert outcome.failures == []


def test_when_every_model_fails_the_flow_does_with_all_reasons(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StageFailed) as failed:
        run(folder, tmp_path / "store", "damaged", "missing")
    first, *others = str(failed.value).splitlines()
    assert first == "no model could be examined"
    assert others[0].startswith("- damaged (prepare): refused its input: model.source = ")
    assert others[1].startswith("- missing (prepare): refused its input: model.source = ")
    assert "outliers.report" not in shards(tmp_path / "store")


def test_the_failure_of_a_model_alone_is_that_of_the_flow(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"prepare 1/1 [0-9a-f]{8} refused its input: model.source = .*damaged"):
        run(folder, tmp_path / "store", "damaged")


def test_a_bad_text_ends_the_flow_once_and_before_any_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    text = STUDY["text"] | {"location": str(tmp_path / "nothing.txt")}
    one_by_one = Execution(device="cpu", slots=1)
    with pytest.raises(StageFailed) as failed:
        run(folder, tmp_path / "store", "dense", "experts", called="badtext", text=text, execution=one_by_one)
    assert str(failed.value).count("text.location") == 1
    assert "no model could be examined" not in str(failed.value)
    assert not list((tmp_path / "store").glob("shards/outliers.scan"))
    _, tasks = asyncio.run(seen("badtext"))
    assert sorted(tasks.values()) == ["Cancelled", "Failed"]
