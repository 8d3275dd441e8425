"""The docker launcher with real containers, without Prefect."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from flows.holders import domain
from flows.launchers.base import Exit, ShardBroken, ShardError, ShardLost, ShardRejected, ShardRun
from flows.launchers.docker.launcher import DockerLauncher, ShardContainer
from flows.launchers.settings import DockerSettings
from tasks.artifacts.catalog import finished
from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tests.containers.engine import FLOWS_IMAGE, labelled, toy_execution
from tests.containers.gpu_task import KINDS as GPU_KINDS
from tests.containers.gpu_task import EatParams
from tests.flows.launchers.driving import driven
from tests.flows.launchers.test_process import finish as finish_process
from tests.flows.launchers.test_process import lease, run_of
from tests.flows.processes import wait_until
from tests.flows.test_holders import holder_of_a_dead_process
from tests.shard_process import result_bytes
from tests.toy_tasks import KINDS, NoParams, SquaresParams

BY_NAME = {kind.name: kind for kind in (*KINDS, *GPU_KINDS)}
SQUARES, STUCK, EAT = BY_NAME["toy.squares"], BY_NAME["toy.stuck"], BY_NAME["gpu.eat"]
LONG = SquaresParams(n=400, chunk_size=1, sleep_s=0.5)

pytestmark = pytest.mark.usefixtures("toy_engine")


def launcher(**settings: Any) -> DockerLauncher:
    made = toy_execution(**settings).make_launcher()
    assert isinstance(made, DockerLauncher)
    return made


def finish(run: ShardRun, by: DockerLauncher | None = None) -> tuple[list[dict[str, Any]], Exit]:
    """Run a shard to its end."""
    with lease() as held:
        return asyncio.run(driven(by or launcher(), run, held))


def while_running(run: ShardRun, act: Callable[[DockerLauncher, ShardContainer], Any]) -> Exit:
    """Start a shard, wait for its first progress, let ``act`` do something to it, and see how it ends."""

    async def main() -> Exit:
        using = launcher()
        with lease() as held:
            handle = await using.start(run, held)
            async for event in using.follow(handle):
                if event["event"] == "progress":
                    break
            await act(using, handle)
            async for _ in using.follow(handle):
                pass
            end = await using.wait(handle)
            await using.stop(handle)
            return end

    return asyncio.run(main())


def test_a_shard_runs_from_an_image_by_digest(tmp_path: Path, toy_engine: docker.DockerClient) -> None:
    params = SquaresParams(n=8, fail="noise")
    events, end = finish(run_of(tmp_path, params))
    assert end.error() is None
    assert [event["event"] for event in events] == ["started", *["progress"] * (len(events) - 2), "finished"]
    assert "a library prints this" in end.stderr
    [manifest] = finished(Store(tmp_path), [SQUARES.spec(params)]).values()
    assert manifest.run["image"] == f"{FLOWS_IMAGE}@{toy_engine.images.get(FLOWS_IMAGE).id}"
    assert labelled(domain=domain()) == []


@pytest.mark.parametrize(
    ("fail", "error", "says"),
    [
        ("bad_input", ShardRejected, "refused its input: params.fail = 'bad_input': this task was told"),
        ("transient", ShardLost, "met a passing fault: this task was told"),
        ("bug", ShardBroken, "failed with exit code 1: this task was told to have a bug\n  | Traceback"),
    ],
)
def test_each_end_has_its_error(tmp_path: Path, fail: Any, error: type[ShardError], says: str) -> None:
    _, end = finish(run_of(tmp_path, SquaresParams(fail=fail)))
    found = end.error()
    assert type(found) is error
    assert str(found).startswith(says)


def test_passing_the_memory_limit_has_a_message_of_its_own(tmp_path: Path) -> None:
    _, end = finish(run_of(tmp_path, EAT.spec(EatParams(mebibytes=2000))), launcher(memory="300MiB"))
    error = end.error()
    assert isinstance(error, ShardLost)
    assert "passed its memory limit of 300MiB; raise execution.container.memory" in str(error)
    _, end = finish(run_of(tmp_path, EAT.spec(EatParams(mebibytes=20))), launcher(memory="300MiB"))
    assert end.error() is None


class EngineWithEvents:
    """An engine that sets no flag and has these events of a container that was killed."""

    def __init__(self, actions: list[str]) -> None:
        self.api = self
        self.actions = actions

    def wait(self, *_: object, **__: object) -> None:
        return None

    def inspect_container(self, _: str) -> dict[str, Any]:
        times = {"StartedAt": "2026-01-02T03:04:05.123456789Z", "FinishedAt": "2026-01-02T03:04:09.123456789Z"}
        return {"State": {"ExitCode": 137, "OOMKilled": False, **times}}

    def events(self, since: str, until: str, filters: dict[str, Any], decode: bool) -> Iterator[dict[str, Any]]:
        assert (since, until, decode) == ("1767323045.123456", "1767323051.123456", True)
        return iter([{"Action": action} for action in self.actions if action in filters["event"]])


@pytest.mark.parametrize(
    ("actions", "memory", "says"),
    [
        (["start", "oom", "die"], "300MiB", "passed its memory limit of 300MiB; raise execution.container.memory"),
        (["start", "oom", "die"], None, "was killed because the machine ran out of memory; use fewer execution.slots"),
        (
            ["start", "die"],
            "300MiB",
            "was killed by SIGKILL, and nobody asked for that: most likely it passed its memory limit of 300MiB; "
            "raise execution.container.memory",
        ),
        (["start", "kill", "die"], "300MiB", "was killed by SIGKILL"),
    ],
)
def test_late_news_of_a_lack_of_memory_are_heard(
    monkeypatch: pytest.MonkeyPatch, actions: list[str], memory: str | None, says: str
) -> None:
    using = launcher()
    monkeypatch.setattr(using, "_connected", EngineWithEvents(actions))
    handle = ShardContainer("c", memory, connection=None, output=asyncio.Queue(), stderr=deque())
    assert str(asyncio.run(using.wait(handle)).error()) == says


def test_a_killed_container_is_lost_and_goes_on_from_its_last_chunk(
    tmp_path: Path, toy_engine: docker.DockerClient
) -> None:
    params = SquaresParams(n=8, chunk_size=1, sleep_s=0.2)

    async def kill(using: DockerLauncher, handle: ShardContainer) -> None:
        toy_engine.api.kill(handle.identity)

    error = while_running(run_of(tmp_path, params), kill).error()
    assert isinstance(error, ShardLost)
    assert str(error).startswith("was killed by SIGKILL")
    assert "memory" not in str(error)
    chunks = len(list(tmp_path.glob("shards/*/*/chunks/*.json")))
    assert 1 <= chunks < 8
    events, end = finish(run_of(tmp_path, params))
    assert end.error() is None
    assert any(f"{chunks} of 8 chunks are there" in event.get("message", "") for event in events)


def test_a_removed_container_is_lost(tmp_path: Path, toy_engine: docker.DockerClient) -> None:
    async def remove(using: DockerLauncher, handle: ShardContainer) -> None:
        toy_engine.api.remove_container(handle.identity, force=True)

    error = while_running(run_of(tmp_path, LONG), remove).error()
    assert isinstance(error, ShardLost)


def test_stop_ends_a_shard_within_seconds(tmp_path: Path) -> None:
    started = 0.0

    async def stop(using: DockerLauncher, handle: ShardContainer) -> None:
        nonlocal started
        started = time.monotonic()
        await using.stop(handle)

    end = while_running(run_of(tmp_path, LONG), stop)
    assert isinstance(end.error(), ShardLost)
    assert time.monotonic() - started < 8
    assert labelled(domain=domain()) == []


def test_a_shard_that_does_not_listen_is_ended_all_the_same(tmp_path: Path) -> None:
    async def main() -> float:
        using = launcher()
        with lease() as held:
            handle = await using.start(run_of(tmp_path, STUCK.spec(NoParams())), held)
            async for event in using.follow(handle):
                if event["event"] == "started":
                    break
            started = time.monotonic()
            await using.stop(handle)
            return time.monotonic() - started

    assert asyncio.run(main()) < 8
    assert labelled(domain=domain()) == []


def test_a_shard_that_is_cancelled_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        using = launcher()
        with lease() as held:
            starting = asyncio.create_task(using.start(run_of(tmp_path, LONG), held))
            await asyncio.sleep(0.05)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting

    asyncio.run(main())
    assert labelled(domain=domain()) == []


def test_sweep_finds_shards_by_their_flow_run(tmp_path: Path) -> None:
    async def sweep(using: DockerLauncher, handle: ShardContainer) -> None:
        assert await using.sweep("another run") == []
        assert await using.sweep() == [], "its holder lives"
        assert len(await using.sweep("this run")) == 1

    assert isinstance(while_running(run_of(tmp_path, LONG, "this run"), sweep).error(), ShardLost)


def test_sweep_removes_what_a_dead_flow_left(tmp_path: Path) -> None:
    name = holder_of_a_dead_process()

    async def sweep(using: DockerLauncher, handle: ShardContainer) -> None:
        assert len(await using.sweep()) == 1

    assert isinstance(while_running(run_of(tmp_path, LONG, held_by=name), sweep).error(), ShardLost)


def test_what_is_left_in_a_slot_is_stopped_before_the_slot_is_used_again(tmp_path: Path) -> None:
    """A container whose flow has let go of the slot: as when the engine did not notice its death."""

    async def main() -> None:
        using = launcher()
        with lease() as held:
            left = await using.start(run_of(tmp_path, LONG), held)
        [first] = labelled(slots="cpu-0", domain=domain())
        with lease() as held:
            handle = await using.start(run_of(tmp_path, SquaresParams(n=401, chunk_size=1, sleep_s=0.5)), held)
            assert labelled(slots="cpu-0", domain=domain()) == [handle.identity] != [first]
            await using.stop(handle)
            await using.stop(left)

    asyncio.run(main())


def test_a_container_dies_with_its_flow(tmp_path: Path) -> None:
    """SIGKILL leaves the flow no chance to clean up; the engine closes the shard's input all the same."""
    program = f"""
import asyncio
from pathlib import Path
from tests.containers.test_launcher import *
async def main():
    await launcher().start(run_of(Path({str(tmp_path)!r}), LONG, "a killed flow's"), lease())
    await asyncio.sleep(600)
asyncio.run(main())
"""
    flow = subprocess.Popen([sys.executable, "-c", program])
    wait_until(lambda: list(tmp_path.glob("shards/*/*/chunks/*.json")), 60, "the shard works")
    flow.kill()
    flow.wait()
    wait_until(lambda: not labelled(flow_run="a killed flow's"), 8, "the container ends")
    assert asyncio.run(launcher().sweep()), "its remains are removed"


def test_a_missing_image_is_refused_with_the_remedy() -> None:
    using = toy_execution().model_copy(deep=True)
    using.container.images["torch"] = "tomograph-nothing:1"
    with pytest.raises(BadInput, match=r"execution\.container\.images\.torch.*no such image.*make images"):
        using.make_launcher().check_environment("torch", "cpu")


def test_a_missing_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardRejected, match="network nowhere not found"):
        finish(run_of(tmp_path, LONG), launcher(network="nowhere"))
    assert labelled(domain=domain()) == []


def test_an_engine_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    using = DockerLauncher(toy_execution().container, DockerSettings())
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(BadInput, match=r"does not answer.*DOCKER_HOST"):
        using.check_environment("torch", "cpu")


def test_credentials_reach_the_shard_and_nothing_else(
    tmp_path: Path, toy_engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-of-the-store")
    monkeypatch.setenv("PREFECT_API_KEY", "canary-of-prefect")
    seen: dict[str, Any] = {}

    async def look(using: DockerLauncher, handle: ShardContainer) -> None:
        seen.update(toy_engine.api.inspect_container(handle.identity))
        seen["logs"] = toy_engine.api.logs(handle.identity).decode()
        await using.stop(handle)

    while_running(run_of(tmp_path, LONG), look)
    assert "AWS_SECRET_ACCESS_KEY=canary-of-the-store" in seen["Config"].pop("Env")
    assert "canary" not in str(seen)
    assert not any(b"canary" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_containers_are_locked_down(tmp_path: Path, toy_engine: docker.DockerClient) -> None:
    seen: dict[str, Any] = {}

    async def look(using: DockerLauncher, handle: ShardContainer) -> None:
        seen.update(toy_engine.api.inspect_container(handle.identity)["HostConfig"])
        await using.stop(handle)

    while_running(run_of(tmp_path, LONG), look)
    assert seen["ReadonlyRootfs"] is True
    assert seen["CapDrop"] == ["ALL"]
    assert seen["SecurityOpt"] == ["no-new-privileges"]
    assert seen["ShmSize"] == 64 * 2**20
    assert not seen["Privileged"]


def test_results_are_those_of_a_subprocess(tmp_path: Path) -> None:
    params = SquaresParams(n=50, chunk_size=7)
    finish(run_of(tmp_path / "container", params))
    finish_process(run_of(tmp_path / "process", params))
    one, other = (result_bytes(Store(tmp_path / name), SQUARES.spec(params)) for name in ("container", "process"))
    assert one == other
