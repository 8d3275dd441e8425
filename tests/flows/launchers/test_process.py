"""The process launcher with real shards, without Prefect."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.launchers.base import (
    Exit,
    ShardBroken,
    ShardError,
    ShardLost,
    ShardRejected,
    ShardRun,
)
from flows.launchers.process import ProcessLauncher, ShardProcess
from flows.slots import Lease, Slot, SlotPool
from tasks.artifacts.catalog import finished
from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tasks.spec import TaskSpec
from tests.flows.helper_task import KINDS as HELPER_KINDS
from tests.flows.helper_task import NoParams
from tests.flows.launchers import driving
from tests.flows.processes import labelled, wait_until
from tests.flows.test_holders import holder_of_a_dead_process
from tests.toy_tasks import KINDS, SquaresParams

[SQUARES] = [kind for kind in KINDS if kind.name == "toy.squares"]
[HELPER] = HELPER_KINDS


@pytest.fixture(autouse=True)
def toy_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOMOGRAPH_PLUGINS", "tests.toy_tasks,tests.flows.helper_task")


def run_of(store: Path, params: SquaresParams | TaskSpec, flow_run: str = "run", held_by: str = "") -> ShardRun:
    spec = params if isinstance(params, TaskSpec) else SQUARES.spec(params)
    return driving.run_of(Store(store), spec, flow_run, held_by)


def lease() -> Lease:
    """The one slot on the CPU."""
    held = SlotPool([Slot("cpu-0", None, 1)]).try_lease()
    assert held is not None
    return held


def finish(run: ShardRun) -> tuple[list[dict[str, Any]], Exit]:
    """Run a shard to its end."""
    with lease() as held:
        return asyncio.run(driving.driven(ProcessLauncher(), run, held))


def while_running(
    run: ShardRun, act: Callable[[ProcessLauncher, ShardProcess], Any], leased: Callable[[], Lease] = lease
) -> Exit:
    """Start a shard, wait for its first progress, let ``act`` do something to it, and see how it ends."""

    async def main() -> Exit:
        launcher = ProcessLauncher()
        with leased() as held:
            handle = await launcher.start(run, held)
            async for event in launcher.follow(handle):
                if event["event"] == "progress":
                    break
            await act(launcher, handle)
            async for _ in launcher.follow(handle):
                pass
            try:
                return await launcher.wait(handle)
            finally:
                await launcher.close()

    return asyncio.run(main())


def test_a_shard_runs_and_tells_its_progress(tmp_path: Path) -> None:
    params = SquaresParams(n=8, fail="noise")
    events, end = finish(run_of(tmp_path, params))
    assert end.error() is None
    assert [event["event"] for event in events] == ["started", *["progress"] * (len(events) - 2), "finished"]
    assert events[-2] | {"event": "progress", "done": 2, "total": 2, "unit": "chunks"} == events[-2]
    assert "a library prints this" in end.stderr
    assert finished(Store(tmp_path), [SQUARES.spec(params)])


@pytest.mark.parametrize(
    ("fail", "error", "says"),
    [
        ("bad_input", ShardRejected, "refused its input: params.fail = 'bad_input': this task was told"),
        ("transient", ShardLost, "met a passing fault: this task was told"),
        ("bug", ShardBroken, "failed with exit code 1: this task was told to have a bug\n  | Traceback"),
        ("kill", ShardLost, "was killed by SIGKILL"),
    ],
)
def test_each_end_has_its_error(tmp_path: Path, fail: Any, error: type[ShardError], says: str) -> None:
    _, end = finish(run_of(tmp_path, SquaresParams(fail=fail)))
    found = end.error()
    assert type(found) is error
    assert str(found).startswith(says)


def test_what_the_launcher_knows_wins_over_the_exit_code() -> None:
    lost = Exit(code=-9, lost="was evicted from its node", stderr=("last words",)).error()
    assert isinstance(lost, ShardLost)
    assert str(lost) == "was evicted from its node\n  | last words"
    refused = Exit(code=1, refused="has no image").error()
    assert isinstance(refused, ShardRejected)


def test_a_shard_that_cannot_start_shows_its_last_lines(tmp_path: Path) -> None:
    run = run_of(tmp_path, SquaresParams())
    broken = ShardRun(str(tmp_path / "nowhere/shards/toy.squares/0/spec.json"), run.labels, device="cpu", threads=1)
    _, end = finish(broken)
    assert isinstance(end.error(), ShardRejected)
    assert "nowhere" in str(end.error())


def test_stop_ends_a_shard_within_seconds_and_frees_its_slot(tmp_path: Path) -> None:
    started = time.monotonic()
    end = while_running(
        run_of(tmp_path, SquaresParams(n=400, sleep_s=0.5)), lambda launcher, handle: launcher.stop(handle)
    )
    assert isinstance(end.error(), ShardLost)
    assert time.monotonic() - started < 15
    lease().release()


def test_helpers_of_a_dead_shard_do_not_hold_its_slot(tmp_path: Path) -> None:
    """A subprocess of a shard that survives it would keep its pipes and its slot."""
    started = time.monotonic()
    _, end = finish(run_of(tmp_path, HELPER.spec(NoParams())))
    assert end.error() is None
    assert time.monotonic() - started < 15
    lease().release()


def test_sweep_finds_shards_by_the_label_of_their_flow_run(tmp_path: Path) -> None:
    async def sweep(launcher: ProcessLauncher, handle: ShardProcess) -> None:
        assert await launcher.sweep("another run") == []
        assert await launcher.sweep() == [], "its holder lives"
        assert len(await launcher.sweep("this run")) == 1

    run = run_of(tmp_path, SquaresParams(n=400, sleep_s=0.5), flow_run="this run")
    assert isinstance(while_running(run, sweep).error(), ShardLost)


def test_sweep_ends_what_a_dead_flow_left(tmp_path: Path) -> None:
    name = holder_of_a_dead_process()

    async def sweep(launcher: ProcessLauncher, handle: ShardProcess) -> None:
        assert len(await launcher.sweep()) == 1

    run = run_of(tmp_path, SquaresParams(n=400, sleep_s=0.5), held_by=name)
    assert isinstance(while_running(run, sweep).error(), ShardLost)


def test_shards_get_their_slot_and_none_of_the_flows_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    seen: dict[str, str] = {}

    async def look(launcher: ProcessLauncher, handle: ShardProcess) -> None:
        seen.update(psutil.Process(handle.process.pid).environ())
        await launcher.stop(handle)

    while_running(run_of(tmp_path, SquaresParams(n=400, sleep_s=0.5)), look)
    assert not [name for name in seen if name.startswith("PREFECT_")]
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["OMP_NUM_THREADS"]) == ("", "1")


def test_a_shard_sees_all_gpus_of_its_lease_and_holds_each(tmp_path: Path) -> None:
    pool = SlotPool([Slot(f"gpu-{name}", name, 2) for name in ("A", "B", "C")])
    seen: dict[str, str] = {}

    def both() -> Lease:
        held = pool.try_lease(2)
        assert held is not None
        leases.append(held)
        return held

    async def look(launcher: ProcessLauncher, handle: ShardProcess) -> None:
        seen.update(psutil.Process(handle.process.pid).environ())
        leases[0].release()  # the flow lets go, the shard does not
        assert pool.try_lease(2) is None
        await launcher.stop(handle)

    leases: list[Lease] = []
    while_running(run_of(tmp_path, SquaresParams(n=400, sleep_s=0.5)), look, both)
    assert seen["CUDA_VISIBLE_DEVICES"] == "A,B"
    again = pool.try_lease(3)
    assert again is not None
    again.release()


def test_a_child_dies_with_its_flow(tmp_path: Path) -> None:
    """SIGKILL leaves the flow no chance to clean up; the kernel closes the pipe all the same."""
    program = f"""
import asyncio
from pathlib import Path
from tests.flows.launchers.test_process import *
async def main():
    run = run_of(Path({str(tmp_path)!r}), SquaresParams(n=400, sleep_s=0.5))
    await ProcessLauncher().start(run, lease())
    await asyncio.sleep(600)
asyncio.run(main())
"""
    flow = subprocess.Popen([sys.executable, "-c", program])
    wait_until(lambda: labelled(str(tmp_path)), 30, "the shard starts")
    flow.kill()
    flow.wait()
    wait_until(lambda: not labelled(str(tmp_path)), 8, "the shard ends")
    wait_until(lambda: SlotPool([Slot("cpu-0", None, 1)]).try_lease(), 2, "its slot is free")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(BadInput, match=r"execution.device.*no GPU"):
        ProcessLauncher().slots(device="cuda", count=None, threads=None)
    assert len(ProcessLauncher().slots(device="auto", count=3, threads=None)) == 3
