"""Pods that start late or never: no free node, no image, no pod at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from flows.launchers.base import ShardLost, ShardRejected
from flows.launchers.kubernetes import follow as kubernetes_follow
from tests.flows.launchers.kubernetes.api import KubernetesApi, Step, recording
from tests.flows.launchers.kubernetes.shards import (
    EVENTS,
    SUCCESS,
    error_of,
    finish,
    launcher,
    own,
    runs,
    said,
    started,
)


def failed_create(message: str) -> dict[str, Any]:
    return recording("event_failed_create") | {"message": message}


def test_unschedulable_then_scheduled(cluster: Callable[..., KubernetesApi]) -> None:
    cluster(Step("pending"), *[Step("unschedulable")] * 3, Step("creating"), runs(), Step("succeeded"))
    events, end = finish()
    assert end.code == 0
    assert own(events) == EVENTS
    assert said(events).count("4 Insufficient nvidia.com/gpu") == 1, "it is said once"


@pytest.mark.parametrize(
    ("statuses", "says"),
    [
        (["err_image_pull", "image_pull_back_off"], "could not be started: ErrImagePull: .*not found; correct"),
        (["secret_missing"], 'tomograph-credentials" not found; create what it lacks, or correct execution.kubernetes'),
        (["invalid_image_name"], "repository name must be lowercase"),
    ],
)
def test_what_never_starts_is_refused(cluster: Callable[..., KubernetesApi], statuses: list[str], says: str) -> None:
    api = cluster(Step("creating"), *(Step(status) for status in statuses))
    events, end = finish()
    error = error_of(end)
    assert isinstance(error, ShardRejected)
    with pytest.raises(ShardRejected, match=says):
        raise error
    assert str(error).split(": ")[1] in said(events), "it is said before the patience with it is over"
    assert len(api.asked("^DELETE")) == 1, "the cluster would go on trying"


def test_what_its_node_cannot_start_may_start_on_another(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster(Step("create_container_error"))
    error = error_of(finish()[1])
    assert isinstance(error, ShardLost)
    assert "could not be started: CreateContainerError: failed to reserve" in str(error)
    assert len(api.asked("^DELETE")) == 1


def test_an_image_that_is_there_at_last_is_no_failure(cluster: Callable[..., KubernetesApi]) -> None:
    cluster(Step("err_image_pull"), Step("image_pull_back_off"), runs(), Step("succeeded"))
    events, end = finish()
    assert end.code == 0
    assert "ErrImagePull" in said(events)


def test_patience_begins_anew_with_each_trouble(cluster: Callable[..., KubernetesApi]) -> None:
    trouble = Step("err_image_pull")
    cluster(trouble, *[Step("creating")] * 25, trouble, runs(), Step("succeeded"))
    assert finish()[1].code == 0


def test_a_job_that_gets_no_pod_says_why(
    cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_follow, "SILENCE_SECONDS", 0.0)
    monkeypatch.setattr(kubernetes_follow, "CREATION_PATIENCE", 0.5)
    api = cluster(Step(None))
    api.events = [failed_create('Error creating: pods "x-" is forbidden: violates PodSecurity "restricted:latest"')]
    events, end = finish()
    error = error_of(end)
    assert isinstance(error, ShardRejected)
    assert "violates PodSecurity" in str(error)
    assert "violates PodSecurity" in said(events)
    [uid] = {request.query["fieldSelector"] for request in api.asked("/events$")}
    assert uid == f"involvedObject.uid={recording('job')['metadata']['uid']},type=Warning"


def test_a_full_quota_is_waited_for(cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_follow, "SILENCE_SECONDS", 0.0)
    monkeypatch.setattr(kubernetes_follow, "CREATION_PATIENCE", 0.2)
    api = cluster(Step(None))
    api.events = [
        failed_create('Error creating: pods "x-" is forbidden: exceeded quota: gpus, requested: 1, limited: 8')
    ]

    async def main() -> None:
        using = launcher()
        handle = await started(using)
        following = asyncio.create_task(anext(aiter(using.follow(handle))))
        assert "exceeded quota" in (await following)["message"]
        await asyncio.sleep(2.5)
        assert handle.follower.end is None
        await using.stop(handle)

    asyncio.run(main())


def test_what_the_role_may_not_see_is_not_needed(
    cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_follow, "SILENCE_SECONDS", 0.0)
    api = cluster(*SUCCESS)
    api.fail("GET .*/events", 100, 403, "Forbidden", "events is forbidden")
    assert finish()[1].code == 0
    assert api.asked("/events$")
