"""Shards as Jobs of a real cluster: how they run, how they end, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from kubernetes import client

from flows.launchers.base import Exit, ShardBroken, ShardError, ShardLost, ShardRejected, ShardRun
from flows.launchers.kubernetes import state as kubernetes_state
from flows.launchers.kubernetes.cluster import Cluster
from flows.launchers.kubernetes.job import STOP_GRACE_SECONDS, selector
from flows.launchers.kubernetes.launcher import KubernetesLauncher, ShardJob
from flows.launchers.kubernetes.state import is_finished
from flows.launchers.settings import ContainerSettings, KubernetesSettings
from tasks.artifacts.catalog import finished
from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tasks.spec import TaskSpec
from tests.containers.gpu_task import KINDS as GPU_KINDS
from tests.containers.gpu_task import EatParams
from tests.flows.launchers import driving
from tests.flows.processes import wait_until
from tests.flows.test_holders import holder_of_a_dead_process
from tests.toy_tasks import KINDS, SquaresParams

BY_NAME = {kind.name: kind for kind in (*KINDS, *GPU_KINDS)}
LONG = SquaresParams(n=400, chunk_size=1, sleep_s=0.5)
SECONDS = 180
Act = Callable[[ShardJob], Awaitable[object]]


@pytest.fixture
def store(namespace: str) -> Store:
    """Each test's own part of the store."""
    return Store(f"{os.environ['TOMOGRAPH_TEST_CLUSTER_STORE'].rstrip('/')}/{uuid.uuid4().hex[:8]}")


def image() -> str:
    return os.environ["TOMOGRAPH_TEST_CLUSTER_IMAGE"]


@pytest.fixture
def launcher(namespace: str) -> Callable[..., KubernetesLauncher]:
    def make(
        timeout_minutes: float | None = None, container: dict[str, Any] | None = None, **settings: Any
    ) -> KubernetesLauncher:
        given = {"images": {"torch": image()}, "memory": "300MiB", "shared_memory": "64MiB"} | (container or {})
        kubernetes = {"namespace": namespace, "cpu": "100m"} | settings
        return KubernetesLauncher(ContainerSettings(**given), KubernetesSettings(**kubernetes), timeout_minutes)

    return make


def run_of(store: Store, params: SquaresParams | EatParams, held_by: str = "") -> ShardRun:
    kind = BY_NAME["toy.squares" if isinstance(params, SquaresParams) else "gpu.eat"]
    return driving.run_of(store, kind.spec(params), held_by=held_by)


def finish(by: KubernetesLauncher, run: ShardRun, act: Act | None = None) -> tuple[list[dict[str, Any]], Exit]:
    """Run a shard to its end. ``act`` does something to it once it has made progress."""

    async def main() -> tuple[list[dict[str, Any]], Exit]:
        with await by.slots(device="cpu", count=None, threads=None).lease(1) as lease:
            return await driving.driven(by, run, lease, act)

    return asyncio.run(asyncio.wait_for(main(), SECONDS))


async def start(by: KubernetesLauncher, run: ShardRun) -> ShardJob:
    """Start a shard, wait for its first progress, and follow it no further."""
    with await by.slots(device="cpu", count=None, threads=None).lease(1) as lease:
        handle = await by.start(run, lease)
        async for event in by.follow(handle):
            if event["event"] == "progress":
                break
        return handle


def running(cluster: Cluster) -> list[str]:
    return [job["metadata"]["name"] for job in cluster.jobs(selector()) if not is_finished(job)]


def squares(params: SquaresParams) -> TaskSpec:
    return BY_NAME["toy.squares"].spec(params)


def test_a_shard_runs(store: Store, launcher: Callable[..., KubernetesLauncher]) -> None:
    params = SquaresParams(n=8)
    events, end = finish(launcher(), run_of(store, params))
    assert end == Exit(0)
    own = [event for event in events if event["event"] != "log"]
    assert [event["event"] for event in own] == ["started", *["progress"] * (len(own) - 2), "finished"]
    [manifest] = finished(store, [squares(params)]).values()
    assert manifest.run["image"] == image()
    assert manifest.counts == {"numbers": 8}


@pytest.mark.parametrize(
    ("fail", "error", "says"),
    [
        ("bad_input", ShardRejected, "refused its input: params.fail = 'bad_input': this task was told"),
        ("transient", ShardLost, "met a passing fault: this task was told"),
        ("bug", ShardBroken, "failed with exit code 1: this task was told to have a bug\n  | Traceback"),
    ],
)
def test_each_end_has_its_error(
    store: Store, launcher: Callable[..., KubernetesLauncher], fail: Any, error: type[ShardError], says: str
) -> None:
    found = finish(launcher(), run_of(store, SquaresParams(fail=fail)))[1].error()
    assert type(found) is error
    assert str(found).startswith(says)


def test_passing_the_memory_limit(store: Store, launcher: Callable[..., KubernetesLauncher]) -> None:
    error = finish(launcher(), run_of(store, EatParams(mebibytes=2000)))[1].error()
    assert isinstance(error, ShardLost)
    assert str(error).startswith("passed its memory limit of 300Mi; raise execution.container.memory")


def test_a_shard_that_takes_too_long(store: Store, launcher: Callable[..., KubernetesLauncher]) -> None:
    error = finish(launcher(timeout_minutes=0.1), run_of(store, LONG))[1].error()
    assert isinstance(error, ShardLost)
    assert str(error).startswith("took longer than execution.timeout_minutes and was stopped")


def test_a_deleted_pod_is_lost_and_its_shard_goes_on_from_its_last_chunk(
    store: Store, cluster: Cluster, launcher: Callable[..., KubernetesLauncher]
) -> None:
    params = SquaresParams(n=12, chunk_size=1, sleep_s=0.5)

    async def delete(handle: ShardJob) -> None:
        [pod] = cluster.pods_of(handle.name)[0]
        client.CoreV1Api().delete_namespaced_pod(pod["metadata"]["name"], cluster.namespace)

    error = finish(launcher(), run_of(store, params), delete)[1].error()
    assert isinstance(error, ShardLost)
    assert str(error).startswith("was stopped: its pod was deleted")
    wait_until(lambda: not running(cluster), 30, "no Job makes another pod")
    events, end = finish(launcher(), run_of(store, params))
    assert end.code == 0
    assert any("of 12 chunks are there" in event.get("message", "") for event in events)


def test_a_deleted_job_is_lost(store: Store, cluster: Cluster, launcher: Callable[..., KubernetesLauncher]) -> None:
    async def delete(handle: ShardJob) -> None:
        cluster.delete_job(handle.name, STOP_GRACE_SECONDS)

    error = finish(launcher(), run_of(store, LONG), delete)[1].error()
    assert isinstance(error, ShardLost)
    assert "was deleted" in str(error)


def test_stop(store: Store, cluster: Cluster, launcher: Callable[..., KubernetesLauncher]) -> None:
    """The shard itself ends within seconds; the remains of its pod stay a little longer."""

    async def main() -> None:
        using = launcher()
        await using.stop(await start(using, run_of(store, LONG)))

    asyncio.run(asyncio.wait_for(main(), SECONDS))
    assert running(cluster) == []
    time.sleep(STOP_GRACE_SECONDS)
    written = store.list(squares(LONG).path)
    time.sleep(2)
    assert store.list(squares(LONG).path) == written


def test_a_secret_that_is_missing(
    store: Store, launcher: Callable[..., KubernetesLauncher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_state, "CONFIGURATION_PATIENCE", 3)
    error = finish(launcher(secrets=["nowhere"]), run_of(store, SquaresParams()))[1].error()
    assert isinstance(error, ShardRejected)
    assert 'secret "nowhere" not found; create what it lacks, or correct execution.kubernetes.secrets' in str(error)


def test_an_image_that_is_missing(
    store: Store, launcher: Callable[..., KubernetesLauncher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_state, "IMAGE_PATIENCE", 3)
    images = {"torch": f"{image().partition('@')[0]}-not@sha256:{'0' * 64}"}
    error = finish(launcher(container={"images": images}), run_of(store, SquaresParams()))[1].error()
    assert isinstance(error, ShardRejected)
    assert "correct execution.container.images" in str(error)


def test_a_namespace_that_is_missing(store: Store, launcher: Callable[..., KubernetesLauncher]) -> None:
    with pytest.raises(BadInput, match=r"execution\.kubernetes\.namespace = 'nowhere'.*not found"):
        finish(launcher(namespace="nowhere"), run_of(store, SquaresParams()))


def test_sweep(store: Store, cluster: Cluster, launcher: Callable[..., KubernetesLauncher]) -> None:
    """A flow that died on this machine has left a shard; the next flow's sweep stops it."""
    run = run_of(store, LONG, held_by=holder_of_a_dead_process())

    async def main() -> None:
        handle = await start(launcher(), run)
        assert running(cluster) == [handle.name]
        assert await launcher().sweep() == [run.labels.shard]
        assert running(cluster) == []

    asyncio.run(asyncio.wait_for(main(), SECONDS))
