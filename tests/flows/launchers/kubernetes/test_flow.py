"""A flow whose shards are Jobs: a real Prefect server, real shards, and the API of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.execution import Execution
from flows.fanout import StageFailed
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tests.flows.launchers.kubernetes.api import KubernetesApi
from tests.flows.toy_flow import SQUARES, toy
from tests.toy_tasks import SquaresParams

pytestmark = pytest.mark.usefixtures("prefect_server")

IMAGE = "registry.example/tomograph-torch:0.1.0-cpu@sha256:" + "5" * 64


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    with KubernetesApi(runs_shards=True).running() as api:
        kubeconfig = str(api.kubeconfig(tmp_path / "kubeconfig"))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", kubeconfig)
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield api


def run(store: Path, squares: list[SquaresParams], launcher: str, **execution: Any) -> dict[str, int]:
    container = {"images": {"torch": IMAGE}, "volumes": [f"runs:{store.parent}"]}
    given = Execution(launcher=launcher, device="cpu", slots=2, threads=1, container=container, **execution)
    return asyncio.run(toy(str(store), squares, given))


def test_the_same_as_on_this_machine(api: KubernetesApi, tmp_path: Path) -> None:
    squares = [SquaresParams(n=4 + i) for i in range(3)]
    assert run(tmp_path / "cluster", squares, "kubernetes") == run(tmp_path / "here", squares, "process")
    for i, params in enumerate(squares):
        path = SQUARES.spec(params, seed=i).path
        there, here = (Shard(Store(tmp_path / root), path).manifest for root in ("cluster", "here"))
        assert there.digest == here.digest
        assert there.run["image"] == IMAGE
    assert len(api.jobs) == 4
    assert {job["metadata"]["annotations"]["tomograph.stage"] for job in api.jobs.values()} == {"squares", "sum"}


def test_what_passes_is_retried(api: KubernetesApi, tmp_path: Path) -> None:
    squares = SquaresParams(n=12, fail="kill", fail_at=2, fail_once=str(tmp_path / "failed"))
    assert run(tmp_path / "store", [squares], "kubernetes") == {"numbers": 12}
    assert Shard(Store(tmp_path / "store"), SQUARES.spec(squares).path).manifest.run["reused_chunks"] == 2
    assert len(api.jobs) == 3


def test_bad_input_is_not(api: KubernetesApi, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="told to refuse its input; use fail='no'") as failed:
        run(tmp_path / "store", [SquaresParams(n=4, fail="bad_input")], "kubernetes")
    assert failed.value.field == "params.fail"
    assert len(api.jobs) == 1


def test_a_stage_that_fails_leaves_no_job_running(api: KubernetesApi, tmp_path: Path) -> None:
    slow, bad = SquaresParams(n=400, sleep_s=1), SquaresParams(n=4, fail="bad_input", sleep_s=1)
    with pytest.raises(StageFailed, match="told to refuse"):
        run(tmp_path / "store", [slow, bad], "kubernetes")
    states = [api.pods[name].step.job_state for name in api.jobs]
    assert "active" not in states
    assert len(api.asked("^DELETE")) == 1
