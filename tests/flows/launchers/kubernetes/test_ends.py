"""Every way in which a shard, its pod or its Job ends, and the error that it becomes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from flows.launchers.base import Exit, ShardBroken, ShardError, ShardLost, ShardRejected
from flows.launchers.kubernetes import state as kubernetes_state
from tests.flows.launchers.kubernetes.api import KubernetesApi, Step
from tests.flows.launchers.kubernetes.shards import EVENTS, error_of, finish, launcher, lines, own, runs, started

FAILED = {"event": "failed", "kind": "bad_input", "field": "params.fail", "message": "params.fail = 'x': no"}


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        ("exit_1", ShardBroken, "ModuleNotFoundError"),
        ("exit_75", ShardLost, "met a passing fault"),
        ("oom_killed", ShardLost, "passed its memory limit of 64Gi"),
        ("killed", ShardLost, "was killed by SIGKILL"),
        ("evicted", ShardLost, "was evicted from its node: The node was low on resource: memory"),
        ("preempted", ShardLost, "was preempted"),
        ("deadline_exceeded", ShardLost, "took longer than execution.timeout_minutes"),
        ("start_error", ShardRejected, "could not be started: "),
        ("admission_error", ShardLost, "no healthy devices"),
    ],
)
def test_ends(cluster: Callable[..., KubernetesApi], status: str, kind: type[ShardError], says: str) -> None:
    cluster(Step("pending"), Step("running", log=[]), Step(status))
    error = error_of(finish()[1])
    assert type(error) is kind
    assert says in str(error)


def test_bad_input(cluster: Callable[..., KubernetesApi]) -> None:
    cluster(runs(EVENTS[0], FAILED), Step("exit_2"))
    events, end = finish()
    assert events[-1] == FAILED
    error = error_of(end)
    assert isinstance(error, ShardRejected)
    assert error.field == "params.fail"
    assert "refused its input: params.fail = 'x': no" in str(error)


def test_last_words_come_from_the_log(cluster: Callable[..., KubernetesApi]) -> None:
    cluster(runs(EVENTS[0], "Fatal Python error: Segmentation fault"), Step("killed"))
    assert "Fatal Python error: Segmentation fault" in str(error_of(finish()[1]))


def test_a_deleted_job_is_lost(cluster: Callable[..., KubernetesApi]) -> None:
    gate = threading.Event()
    api = cluster(Step("running", log=lines(*EVENTS, gates=[None, gate])))

    async def main() -> Exit:
        using = launcher()
        handle = await started(using)
        async for event in using.follow(handle):
            if event["event"] == "started":
                api.delete(handle.name)
        return await using.wait(handle)

    error = error_of(asyncio.run(asyncio.wait_for(main(), 20)))
    assert isinstance(error, ShardLost)
    assert "was deleted" in str(error)


@pytest.mark.parametrize(
    ("job", "says"), [("gone", "its job was deleted"), ("failed", "its pod is gone: Job has reached")]
)
def test_a_pod_that_is_gone(cluster: Callable[..., KubernetesApi], job: str, says: str) -> None:
    cluster(runs(*EVENTS[:2]), Step(None, job=job))
    error = error_of(finish()[1])
    assert isinstance(error, ShardLost)
    assert says in str(error)


def test_a_pod_that_was_removed_after_its_success(cluster: Callable[..., KubernetesApi]) -> None:
    cluster(runs(), Step(None, job="complete"))
    assert finish()[1] == Exit(0, stderr=())


def test_the_job_of_a_deleted_pod_goes_too(cluster: Callable[..., KubernetesApi]) -> None:
    """Its shard has ended, but it may make another pod."""
    api = cluster(runs(*EVENTS[:3]), Step("exit_75", terminating=True))
    assert "its pod was deleted" in str(error_of(finish()[1]))
    assert len(api.asked("^DELETE")) == 1


def test_a_pod_that_was_replaced(cluster: Callable[..., KubernetesApi]) -> None:
    """As when it was deleted by hand, or its node was drained: its Job makes another, which must not run on unseen."""
    api = cluster(runs(*EVENTS[:3]), Step("running", log=lines(*EVENTS), replacement=True))
    events, end = finish()
    assert own(events) == EVENTS[:3]
    error = error_of(end)
    assert isinstance(error, ShardLost)
    assert "its pod was deleted" in str(error)
    assert len(api.asked("^DELETE")) == 1
    assert api.jobs == {}


def test_a_lost_node(cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_state, "OVERDUE_SECONDS", 1.0)
    unreachable = (500, 'Get "https://10.0.3.17:10250/containerLogs": dial tcp: i/o timeout')
    api = cluster(runs(*EVENTS[:3]), Step("node_lost", terminating=True, log_fault=unreachable))
    events, end = finish()
    assert own(events) == EVENTS[:3]
    error = error_of(end)
    assert isinstance(error, ShardLost)
    assert "was lost with its node: Taint manager" in str(error)
    assert len(api.asked("^DELETE")) == 1
