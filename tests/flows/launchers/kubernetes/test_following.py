"""A shard's events while it runs: live, each once, through logs and watches that break."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from flows.launchers.kubernetes import cluster as kubernetes_cluster
from tests.flows.launchers.kubernetes.api import KubernetesApi, Step
from tests.flows.launchers.kubernetes.shards import EVENTS, SUCCESS, finish, launcher, lines, own, runs, said, started


def test_events_come_live(cluster: Callable[..., KubernetesApi]) -> None:
    """And not when the shard has ended."""
    gate = threading.Event()
    cluster(Step("running", log=lines(*EVENTS, gates=[None, None, None, gate])), Step("succeeded"))

    async def main() -> None:
        using = launcher()
        handle = await started(using)
        async for event in using.follow(handle):
            if event["event"] == "progress" and event["done"] == 1:
                gate.set()
        assert gate.is_set()
        assert (await using.wait(handle)).code == 0

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("cuts", [[3], [0, 0, 1], [1, 2, 3, 4], [4]])
def test_a_cut_log_is_resumed(cluster: Callable[..., KubernetesApi], cuts: list[int]) -> None:
    """Nothing is lost and nothing comes twice, however often it is cut."""
    api = cluster(Step("pending"), runs(cuts=cuts), Step("succeeded"))
    events, end = finish()
    assert end.code == 0
    assert own(events) == EVENTS
    asked = [request.query.get("sinceTime") for request in api.asked("/log$")]
    assert len(asked) > len(cuts)
    assert asked[0] is None
    if cuts[0]:
        assert asked[1] == "2026-02-11T09:30:02Z", "the second of the newest line, and two before"


def test_a_silent_connection_is_replaced(
    cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be dead: nothing says so."""
    monkeypatch.setattr(kubernetes_cluster, "QUIET_SECONDS", 0.5)
    gate = threading.Event()
    api = cluster(Step("running", log=lines(*EVENTS, gates=[None, None, gate])), Step("succeeded"))
    threading.Timer(2, gate.set).start()
    events, end = finish()
    assert end.code == 0
    assert own(events) == EVENTS
    assert len(api.asked("/log$")) > 2


def test_a_log_that_cannot_be_read_loses_no_shard(cluster: Callable[..., KubernetesApi]) -> None:
    message = 'Get "https://10.0.3.17:10250/containerLogs/research/x/shard": dial tcp 10.0.3.17:10250: i/o timeout'
    cluster(Step("running", log_fault=(500, message)), Step("succeeded", log_fault=(500, message)))
    events, end = finish()
    assert end.code == 0
    assert "warning: the end of its log can't be read: Get" in said(events)


@pytest.mark.parametrize("fault", [410, 500, None])
def test_a_watch_that_fails_is_no_matter(cluster: Callable[..., KubernetesApi], fault: int | None) -> None:
    """Such as one from a version that the API no longer knows."""
    api = cluster(*SUCCESS)
    api.fail(r"GET .*/pods\?.*watch=true", 3, fault, "Expired", "too old resource version: 1000 (2000)")
    events, end = finish()
    assert end.code == 0
    assert own(events) == EVENTS
    assert api.faults[0].times < 3
