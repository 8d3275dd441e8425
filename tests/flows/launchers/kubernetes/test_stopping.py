"""Shards that are stopped: their Jobs are deleted and nobody follows them any more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from flows.launchers.kubernetes.launcher import KubernetesLauncher, ShardJob
from tests.flows.launchers.kubernetes.api import KubernetesApi, Step, make_certificate
from tests.flows.launchers.kubernetes.shards import EVENTS, SUCCESS, launcher, lines, started
from tests.flows.processes import wait_until

Act = Callable[[KubernetesLauncher, ShardJob], Awaitable[object]]


def while_running(api: KubernetesApi, act: Act) -> float:
    """Start a shard, let ``act`` do something to it once it has said something, and how long that took."""

    async def main() -> float:
        using = launcher()
        handle = await started(using)
        following = aiter(using.follow(handle))
        while (await anext(following))["event"] != "started":
            pass
        rest = asyncio.create_task(anext(following, None))
        await asyncio.sleep(0.1)
        begun = time.monotonic()
        await act(using, handle)
        await asyncio.wait_for(asyncio.wait([rest]), 10)
        return time.monotonic() - begun

    return asyncio.run(asyncio.wait_for(main(), 30))


def silent() -> Step:
    """A shard that says one thing and then nothing any more."""
    return Step("running", log=lines(*EVENTS, gates=[None, threading.Event()]))


def followers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kubernetes follow"]


@pytest.mark.parametrize("tls", [False, True])
def test_stop(cluster: Callable[..., KubernetesApi], tmp_path: Path, tls: bool) -> None:
    api = cluster(silent(), certificate=make_certificate(tmp_path / "certificate.pem") if tls else None)

    async def twice(using: KubernetesLauncher, handle: ShardJob) -> None:
        await using.stop(handle)
        await using.stop(handle)

    assert while_running(api, twice) < 3
    [request] = api.asked("^DELETE")
    assert request.body == {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": "Background",
        "gracePeriodSeconds": 5,
    }
    assert api.jobs == {}
    wait_until(lambda: not followers(), 5, "nobody follows any more")


def test_a_follower_ends_when_its_log_can_be_interrupted_only(cluster: Callable[..., KubernetesApi]) -> None:
    """The API does not end the log, as when the node is gone with which it was."""
    api = cluster(silent())

    async def give_up(_: KubernetesLauncher, handle: ShardJob) -> None:
        handle.follower.give_up()

    assert while_running(api, give_up) < 3
    wait_until(lambda: not followers(), 5, "nobody follows any more")


def test_stop_of_a_job_that_is_gone(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster(silent())

    async def act(using: KubernetesLauncher, handle: ShardJob) -> None:
        del api.jobs[handle.name]
        await using.stop(handle)

    while_running(api, act)
    assert len(api.asked("^DELETE")) == 1


def test_a_cancelled_flow_leaves_no_job(cluster: Callable[..., KubernetesApi]) -> None:
    """Whether it is cancelled while a shard runs or while it is being created."""
    api = cluster(*SUCCESS)
    api.fail(r"POST .*/jobs(\?|$)", 2, 503)

    async def main() -> None:
        starting = asyncio.create_task(started(launcher()))
        while not api.asked("^POST"):
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(main())
    wait_until(lambda: len(api.asked("^POST")) == 3 and not api.jobs, 10, "the Job is deleted")
