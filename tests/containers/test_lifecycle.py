"""Flows over containers that are cancelled or killed: no container stays, and nothing finished is repeated."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest

from flows.execution import Execution
from flows.fanout import StageFailed
from flows.holders import domain
from flows.launchers.docker.launcher import DockerLauncher
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tests.containers.engine import REPOSITORY, labelled, toy_execution
from tests.flows.processes import wait_until
from tests.flows.test_interruption import cancel, start_deployment, state_of, worker  # noqa: F401
from tests.flows.test_progress import read
from tests.flows.toy_flow import SQUARES, toy
from tests.toy_tasks import SquaresParams

pytestmark = pytest.mark.usefixtures("prefect_server", "toy_engine")

CANCEL_SECONDS = 10


def execution(**more: Any) -> Execution:
    return toy_execution(device="cpu", slots=2, **more)


def parameters(store: Path, squares: list[SquaresParams]) -> dict[str, Any]:
    return {
        "store": str(store),
        "squares": [params.model_dump() for params in squares],
        "execution": execution().model_dump(mode="json"),
    }


def chunks_of(store: Path) -> int:
    return len(list(store.glob("shards/toy.squares/*/chunks/*.json")))


def running() -> list[str]:
    return labelled(domain=domain())


@pytest.mark.usefixtures("worker")
def test_cancelling_through_the_api_stops_the_containers_in_ten_seconds(tmp_path: Path) -> None:
    squares = [SquaresParams(n=400 + i, chunk_size=1, sleep_s=0.5) for i in range(4)]
    flow_run = asyncio.run(start_deployment(parameters(tmp_path, squares)))
    wait_until(lambda: len(running()) == 2, 90, "two containers run")
    asyncio.run(cancel(flow_run))
    seconds = wait_until(lambda: not running(), CANCEL_SECONDS, "the containers end")
    print(f"containers ended after {seconds:.1f} s")
    wait_until(lambda: asyncio.run(state_of(flow_run)) == "Cancelled", 15, "the run is cancelled")


@pytest.mark.usefixtures("worker")
def test_a_killed_worker_takes_its_flow_along_or_leaves_it_whole(tmp_path: Path) -> None:
    """The worker's death is not the flow's: it goes on to its end, or is run again; either way nothing stays."""
    squares = [SquaresParams(n=8 + i, chunk_size=1, sleep_s=0.4) for i in range(2)]
    asyncio.run(start_deployment(parameters(tmp_path, squares)))
    wait_until(lambda: chunks_of(tmp_path) >= 3, 90, "chunks are written")
    [process] = [
        process
        for process in psutil.Process().children(recursive=True)
        if "worker" in process.cmdline() and "prefect" in process.cmdline()
    ]
    process.send_signal(signal.SIGKILL)
    assert asyncio.run(toy(str(tmp_path), squares, execution())) == {"numbers": 8 + 9}
    wait_until(lambda: not running(), 30, "no container stays")
    manifests = [Shard(Store(tmp_path), SQUARES.spec(p, seed=i).path).manifest for i, p in enumerate(squares)]
    assert [manifest.counts["numbers"] for manifest in manifests] == [8, 9]


def test_a_killed_flow_leaves_no_container_and_the_next_run_goes_on(tmp_path: Path) -> None:
    squares = [SquaresParams(n=6 + i, chunk_size=1, sleep_s=0.4) for i in range(2)]
    arguments = json.dumps(parameters(tmp_path, squares))
    flow = subprocess.Popen([sys.executable, "-m", "tests.flows.toy_flow", arguments], cwd=REPOSITORY)
    wait_until(lambda: chunks_of(tmp_path) >= 3, 60, "chunks are written")
    assert running()
    flow.kill()
    flow.wait()
    wait_until(lambda: not running(), 8, "the containers end")
    left = chunks_of(tmp_path)

    assert asyncio.run(toy(str(tmp_path), squares, execution())) == {"numbers": 6 + 7}
    manifests = [Shard(Store(tmp_path), SQUARES.spec(p, seed=i).path).manifest for i, p in enumerate(squares)]
    assert sum(manifest.run["reused_chunks"] for manifest in manifests) == left
    assert all(manifest.run["image"] for manifest in manifests)


def test_the_remains_of_a_dead_flow_are_swept_by_the_next_one(tmp_path: Path, toy_engine: docker.DockerClient) -> None:
    arguments = json.dumps(parameters(tmp_path, [SquaresParams(n=400, chunk_size=1, sleep_s=0.3)]))
    flow = subprocess.Popen([sys.executable, "-m", "tests.flows.toy_flow", arguments], cwd=REPOSITORY)
    wait_until(lambda: chunks_of(tmp_path), 60, "chunks are written")
    [left] = running()
    toy_engine.api.pause(left)  # it can't end by itself
    flow.kill()
    flow.wait()
    time.sleep(1)
    assert running() == [left]
    assert asyncio.run(toy(str(tmp_path), [SquaresParams(n=3)], execution())) == {"numbers": 3}
    assert left not in [one["Id"] for one in toy_engine.api.containers(all=True)]


def test_a_killed_container_is_retried_and_its_log_is_in_the_ui(
    tmp_path: Path, toy_engine: docker.DockerClient
) -> None:
    squares = [SquaresParams(n=8, chunk_size=1, sleep_s=0.3)]

    async def main() -> str:
        run = asyncio.create_task(toy(str(tmp_path), squares, execution(), return_state=True))
        while chunks_of(tmp_path) < 2:
            await asyncio.sleep(0.05)
        [container] = running()
        await asyncio.to_thread(toy_engine.api.kill, container)
        state = await run
        assert state.is_completed(), state
        return str(state.state_details.flow_run_id)

    flow_run = asyncio.run(main())
    from prefect.client.orchestration import get_client

    async def name() -> str:
        async with get_client() as client:
            return (await client.read_flow_run(flow_run)).name

    async def messages() -> list[str]:
        return (await read(await name()))[1]

    wait_until(lambda: any("Retry 1/3" in text for text in asyncio.run(messages())), 15, "the retry is in the UI")
    said = asyncio.run(messages())
    assert any("was killed by SIGKILL" in text for text in said)
    assert any("of 8 chunks are there from an earlier run" in text for text in said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_flow_stops_its_containers(tmp_path: Path, number: signal.Signals) -> None:
    arguments = json.dumps(parameters(tmp_path, [SquaresParams(n=400, chunk_size=1, sleep_s=0.5)]))
    command = [sys.executable, "-m", "tests.flows.toy_flow", arguments]
    flow = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    wait_until(lambda: chunks_of(tmp_path), 60, "chunks are written")
    flow.send_signal(number)
    assert flow.wait(20) != 0
    assert not running()


def test_a_shard_that_takes_too_long_is_stopped_and_goes_on(tmp_path: Path) -> None:
    slow = [SquaresParams(n=10, chunk_size=1, sleep_s=0.5)]
    limited = execution(timeout_minutes=4 / 60, retries=5)
    assert asyncio.run(toy(str(tmp_path), slow, limited)) == {"numbers": 10}
    hopeless = [SquaresParams(n=1, sleep_s=30)]
    with pytest.raises(StageFailed, match=r"took longer than execution\.timeout_minutes = 0.0333333"):
        asyncio.run(toy(str(tmp_path), hopeless, execution(timeout_minutes=2 / 60, retries=0)))
    assert not running()


def test_a_missing_image_fails_before_anything_starts(tmp_path: Path) -> None:
    missing = execution()
    missing.container.images["torch"] = "tomograph-nothing:1"
    with pytest.raises(Exception, match=r"execution\.container\.images\.torch.*make images"):
        asyncio.run(toy(str(tmp_path), [SquaresParams(n=3)], missing))
    assert not (tmp_path / "shards").exists()


def test_an_engine_that_goes_away_is_a_passing_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection to the engine is cut for one call, as when its daemon restarts."""
    launcher = execution().make_launcher()
    assert isinstance(launcher, DockerLauncher)
    calls = []
    remembered = DockerLauncher._clear

    def cut(self: DockerLauncher, lease: Any) -> None:
        calls.append(os.getpid())
        if len(calls) == 1:
            raise ConnectionResetError("the daemon restarts")
        remembered(self, lease)

    monkeypatch.setattr(DockerLauncher, "_clear", cut)
    assert asyncio.run(toy(str(tmp_path), [SquaresParams(n=3)], execution())) == {"numbers": 3}
    assert len(calls) >= 2
