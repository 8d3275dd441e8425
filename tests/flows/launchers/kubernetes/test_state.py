"""What recorded states of pods and Jobs mean."""

from __future__ import annotations

import re
from typing import Any

import pytest

from flows.launchers.base import ShardBroken, ShardError, ShardLost, ShardRejected
from flows.launchers.kubernetes.state import Ended, Running, Waiting, state_of
from tests.flows.launchers.kubernetes.api import recording


def pod(status: str, **metadata: Any) -> dict[str, Any]:
    container = {"name": "shard", "resources": {"limits": {"memory": "64Gi"}}}
    return {
        "metadata": {"name": "tomograph-1-x7k2p", **metadata},
        "spec": {"nodeName": "gpu-node-3", "containers": [container]},
        "status": recording(f"statuses/{status}"),
    }


def job(status: str | None, **metadata: Any) -> dict[str, Any]:
    return {"metadata": metadata, "status": recording("job_finished")[status] if status else {}}


def error_of(state: object) -> ShardError:
    assert isinstance(state, Ended)
    error = state.exit.error()
    assert error is not None
    return error


def assert_says(text: object, pattern: str) -> None:
    assert re.search(pattern, str(text)), text


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        ("exit_1", ShardBroken, "failed with exit code 1"),
        ("exit_2", ShardRejected, "refused its input"),
        ("exit_75", ShardLost, "met a passing fault"),
        ("killed", ShardLost, "was killed by SIGKILL"),
        ("oom_killed", ShardLost, "passed its memory limit of 64Gi; raise execution.container.memory"),
        ("start_error", ShardRejected, 'could not be started: .*exec: "python": executable file not found'),
        ("evicted", ShardLost, "was evicted from its node: The node was low on resource: memory"),
        ("preempted", ShardLost, "was preempted by a pod that goes first: default-scheduler: preempting"),
        ("node_shutdown", ShardLost, "was stopped since its node shuts down: Pod was terminated in response"),
        ("deadline_exceeded", ShardLost, "took longer than execution.timeout_minutes"),
        ("admission_error", ShardLost, "was not run by its node: UnexpectedAdmissionError: .*no healthy devices"),
    ],
)
def test_each_end_has_a_message_of_its_own(status: str, kind: type[ShardError], says: str) -> None:
    error = error_of(state_of(None, pod(status)))
    assert type(error) is kind
    assert_says(error, says)


def test_success() -> None:
    state = state_of(None, pod("succeeded"))
    assert isinstance(state, Ended)
    assert state.exit.error() is None
    assert state.ran


def test_an_end_that_came_with_its_pods_deletion_is_lost() -> None:
    assert_says(error_of(state_of(None, pod("exit_75", deletionTimestamp="now"))), "was stopped: its pod was deleted")


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("exit_2", 2)])
def test_what_the_shard_said_before_its_pod_was_deleted_counts(status: str, code: int) -> None:
    state = state_of(None, pod(status, deletionTimestamp="now"))
    assert isinstance(state, Ended)
    assert (state.exit.code, state.exit.lost) == (code, "")


def test_out_of_memory_without_a_limit_is_the_nodes() -> None:
    without = pod("oom_killed")
    del without["spec"]["containers"][0]["resources"]
    assert_says(error_of(state_of(None, without)), "its node ran out of memory")


def test_a_node_that_no_longer_answers_is_given_up_after_a_while() -> None:
    lost = pod("node_lost", deletionTimestamp="now")
    assert state_of(None, lost, terminating_for=30) == Running()
    state = state_of(None, lost, terminating_for=90)
    assert_says(error_of(state), "was lost with its node: Taint manager")
    assert isinstance(state, Ended)
    assert not state.settled


@pytest.mark.parametrize(
    ("status", "notice", "for_ever"),
    [
        ("pending", "", True),
        ("creating", "", True),
        ("unschedulable", "waits for its place in the cluster: 0/5 nodes are available: .*4 Insufficient nvidia", True),
        ("unschedulable_claim", 'persistentvolumeclaim "models" not found', False),
        ("err_image_pull", "ErrImagePull: failed to pull and unpack image .* not found", False),
        ("image_pull_back_off", "ImagePullBackOff: Back-off pulling image", False),
        ("invalid_image_name", "InvalidImageName: .*repository name must be lowercase", False),
        ("create_container_error", "CreateContainerError: failed to reserve container name", False),
        ("secret_missing", 'CreateContainerConfigError: secret "tomograph-credentials" not found', False),
    ],
)
def test_what_keeps_a_shard_waiting(status: str, notice: str, for_ever: bool) -> None:
    state = state_of(None, pod(status))
    assert isinstance(state, Waiting)
    assert (state.patience is None) is for_ever
    assert bool(state.notice) is bool(notice)
    if notice:
        assert_says(state.notice, notice)


def test_running() -> None:
    assert state_of(None, pod("running")) == Running()


def test_a_job_without_a_pod() -> None:
    assert state_of(job(None), None) == Waiting()
    assert state_of(job("active"), None) == Waiting()
    complete = state_of(job("complete"), None)
    assert isinstance(complete, Ended)
    assert complete.exit.error() is None
    assert_says(error_of(state_of(job("failed"), None)), "its pod is gone: Job has reached the specified backoff limit")
    assert_says(error_of(state_of(None, None)), "its job was deleted")
    assert_says(error_of(state_of(job("active", deletionTimestamp="now"), None)), "its job was deleted")
