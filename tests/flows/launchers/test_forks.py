"""Shards as forks of a process that has their libraries loaded."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from flows.launchers.base import Exit, ShardLost
from flows.launchers.process import ProcessLauncher, ShardProcess
from tests.flows.launchers.test_process import lease, run_of
from tests.flows.processes import labelled, wait_until
from tests.toy_tasks import SquaresParams

pytestmark = [
    pytest.mark.skipif(not ProcessLauncher.forks, reason="this system's libraries do not survive a fork"),
    pytest.mark.usefixtures("toy_tasks"),
]

Result = TypeVar("Result")


def with_launcher(body: Callable[[ProcessLauncher], Awaitable[Result]]) -> Result:
    async def main() -> Result:
        launcher = ProcessLauncher()
        try:
            return await body(launcher)
        finally:
            await launcher.close()

    return asyncio.run(main())


async def until_progress(launcher: ProcessLauncher, handle: ShardProcess) -> None:
    async for event in launcher.follow(handle):
        if event["event"] == "progress":
            return


async def ended(launcher: ProcessLauncher, handle: ShardProcess) -> Exit:
    async for _ in launcher.follow(handle):
        pass
    return await launcher.wait(handle)


def test_all_shards_of_a_run_are_forks_of_one_process(tmp_path: Path) -> None:
    async def body(launcher: ProcessLauncher) -> set[int]:
        parents = set()
        for n in (3, 4):
            with lease() as held:
                handle = await launcher.start(run_of(tmp_path, SquaresParams(n=n, sleep_s=0.05)), held)
                await until_progress(launcher, handle)
                parents.add(psutil.Process(handle.process.pid).ppid())
                assert (await ended(launcher, handle)).error() is None
        return parents

    assert len(with_launcher(body)) == 1
    assert not labelled(str(tmp_path))


def test_shards_that_start_side_by_side_share_a_process(tmp_path: Path) -> None:
    async def body(launcher: ProcessLauncher) -> int:
        with lease() as held:
            runs = [run_of(tmp_path, SquaresParams(n=n, sleep_s=0.2)) for n in (3, 4)]
            handles = await asyncio.gather(*(launcher.start(run, held) for run in runs))
            servers = [child for child in psutil.Process().children() if "fork-server" in child.cmdline()]
            for handle in handles:
                assert (await ended(launcher, handle)).error() is None
            return len(servers)

    assert with_launcher(body) == 1


def test_modules_are_loaded_once_and_before_the_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_library.py").write_text("import os; print('loaded in', os.getpid(), file=open('loads', 'a'))")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    async def body(launcher: ProcessLauncher) -> None:
        for n in (3, 4):
            with lease() as held:
                run = replace(run_of(tmp_path, SquaresParams(n=n)), preload=("slow_library", "no_such_library"))
                assert (await ended(launcher, await launcher.start(run, held))).error() is None

    with_launcher(body)
    assert len((tmp_path / "loads").read_text().splitlines()) == 1


def test_when_the_server_is_killed_its_shards_are_lost_and_the_next_has_another(tmp_path: Path) -> None:
    async def body(launcher: ProcessLauncher) -> Exit:
        with lease() as held:
            handle = await launcher.start(run_of(tmp_path, SquaresParams(n=400, sleep_s=0.05)), held)
            await until_progress(launcher, handle)
            psutil.Process(handle.process.pid).parent().send_signal(signal.SIGKILL)
            error = (await ended(launcher, handle)).error()
            assert isinstance(error, ShardLost)
            assert not labelled(str(tmp_path))
        with lease() as held:
            return await ended(launcher, await launcher.start(run_of(tmp_path, SquaresParams(n=3)), held))

    assert with_launcher(body).error() is None


def test_the_server_ends_with_its_launcher(tmp_path: Path) -> None:
    async def body(launcher: ProcessLauncher) -> psutil.Process:
        with lease() as held:
            handle = await launcher.start(run_of(tmp_path, SquaresParams(n=3, sleep_s=0.1)), held)
            server = psutil.Process(handle.process.pid).parent()
            assert (await ended(launcher, handle)).error() is None
        assert server.is_running()
        return server

    server = with_launcher(body)
    wait_until(lambda: not server.is_running(), 5, "the server ends")
