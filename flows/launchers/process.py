"""Shards as subprocesses of the flow, one for each slot of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil

from flows.launchers import environments
from flows.launchers.base import STDERR_LINES_KEPT, Exit, Labels, Launcher, ShardRun
from flows.launchers.environments import REPOSITORY
from flows.launchers.events import LINE_LIMIT, event_of
from flows.launchers.forks import Fork, ForkServer
from flows.slots import Lease, SlotPool, host_slots
from tasks.gpus import PROMISE
from tasks.spec import TORCH

STOP_GRACE_SECONDS = 5.0
REAP_SECONDS = 0.2
OUT_OF_MEMORY = "was killed because the machine ran out of memory; give it fewer slots"


@dataclass
class ShardProcess:
    """A running shard. Its stdin stays open: the child ends when the kernel closes it for a dead flow."""

    process: asyncio.subprocess.Process | Fork
    ended: asyncio.Task[int]
    stderr: deque[str]
    stderr_reader: asyncio.Task[None]
    oom_kills_before: int
    failure: dict[str, Any]


class ProcessLauncher(Launcher[ShardProcess]):
    """``python -m tasks`` in a process group of its own.

    Shards on the CPU are forks of a process that has their libraries loaded (`flows.launchers.forks`). On a GPU each
    is a process from its start: CUDA does not outlive a fork.
    """

    forks: ClassVar[bool] = sys.platform == "linux"
    """macOS ends some processes that fork with many libraries loaded."""

    def __init__(self) -> None:
        self._servers: dict[int, ForkServer] = {}
        """By the threads of their shards: libraries read their number when they are loaded."""

    def slots(self, *, device: str, count: int | None, threads: int | None) -> SlotPool:
        return host_slots(device, count, threads)

    def check_environment(self, environment: str, device: str) -> None:
        environments.check(environment, device)

    def program(self, environment: str) -> tuple[str, ...]:
        """Command of a shard, without its arguments. Raises BadInput: there is no such environment."""
        return (environments.interpreter(environment), "-m", "tasks")

    async def start(self, run: ShardRun, lease: Lease) -> ShardProcess:
        oom_kills_before = _oom_kills()
        forked = self.forks and run.device == "cpu" and run.environment == TORCH
        process = await self._forked(run, lease) if forked else await self._spawned(run, lease)
        stderr: deque[str] = deque(maxlen=STDERR_LINES_KEPT)
        return ShardProcess(
            process,
            ended=asyncio.create_task(_reap(process)),
            stderr=stderr,
            stderr_reader=asyncio.create_task(_keep(process.stderr, stderr)),
            oom_kills_before=oom_kills_before,
            failure={},
        )

    async def _spawned(self, run: ShardRun, lease: Lease) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(*self.program(run.environment), *run.arguments, "--exit-with-parent"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(run, lease),
            pass_fds=lease.filenos(),
            start_new_session=True,
            limit=LINE_LIMIT,
        )

    async def _forked(self, run: ShardRun, lease: Lease) -> Fork:
        server = self._servers.setdefault(run.threads, ForkServer())
        arguments = [*run.arguments, "--exit-with-parent"]
        environment = _environment(run, lease) | run.labels.of_all_shards().as_environment()
        program = (*self.program(run.environment), "fork-server", "--store", run.store, "--threads", str(run.threads))
        return await server.fork(program, arguments, environment, run.preload, lease.filenos())

    async def close(self) -> None:
        for server in self._servers.values():
            await server.close()

    async def follow(self, handle: ShardProcess) -> AsyncIterator[dict[str, Any]]:
        async for line in _lines(handle.process.stdout):
            event = event_of(line)
            if event["event"] == "failed":
                handle.failure = event
            yield event

    async def wait(self, handle: ShardProcess) -> Exit:
        code = await handle.ended
        await handle.stderr_reader
        oom = code == -signal.SIGKILL and _oom_kills() > handle.oom_kills_before
        return Exit(code, handle.failure, tuple(handle.stderr), lost=OUT_OF_MEMORY if oom else "")

    async def stop(self, handle: ShardProcess) -> None:
        if not handle.ended.done():
            _signal_group(handle.process.pid, signal.SIGTERM)
            await asyncio.wait([handle.ended], timeout=STOP_GRACE_SECONDS)
        if not handle.ended.done():
            _signal_group(handle.process.pid, signal.SIGKILL)
            await asyncio.wait([handle.ended])
        handle.stderr_reader.cancel()

    async def sweep(self, flow_run: str | None = None) -> list[str]:
        found = await asyncio.to_thread(_labelled, flow_run)
        processes = [process for process, _ in found]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in await _still_alive(processes, STOP_GRACE_SECONDS):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return sorted({shard for _, shard in found})


async def _reap(process: asyncio.subprocess.Process | Fork) -> int:
    """Wait for the shard, then end the helpers it left behind: they would hold its slot and its pipes.

    ``Process.wait`` alone waits for the pipes too (before Python 3.12), so for the helpers.
    """
    closed = asyncio.create_task(process.wait())
    while process.returncode is None:
        await asyncio.wait([closed], timeout=REAP_SECONDS)
    _signal_group(process.pid, signal.SIGKILL)
    return process.returncode


async def _still_alive(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that have not ended after so many seconds.

    Looks and does not wait for them as a parent does: that would take their exit codes from `_reap`.
    """
    deadline = time.monotonic() + seconds
    while alive := [process for process in processes if _lives(process)]:
        if time.monotonic() > deadline:
            return alive
        await asyncio.sleep(REAP_SECONDS / 4)
    return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _environment(run: ShardRun, lease: Lease) -> dict[str, str]:
    """This process's environment without Prefect's settings (and its credentials), and the slot's share."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    path = os.pathsep.join(filter(None, (str(REPOSITORY), inherited.get("PYTHONPATH"))))
    return {
        **inherited,
        **run.labels.as_environment(),
        "PYTHONPATH": path,
        "CUDA_VISIBLE_DEVICES": lease.gpus,
        PROMISE: ",".join(lease.uuids),
        "OMP_NUM_THREADS": str(run.threads),
    }


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[str]:
    if stream is None:
        raise RuntimeError("the shard was started without a pipe for its output")
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # longer than LINE_LIMIT, and dropped
            continue
        if not line:
            return
        yield line.decode(errors="replace").rstrip("\r\n")


async def _keep(stream: asyncio.StreamReader | None, lines: deque[str]) -> None:
    async for line in _lines(stream):
        lines.append(line)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
        os.killpg(pid, number)


def _labelled(flow_run: str | None) -> list[tuple[psutil.Process, str]]:
    """Processes with the label of ``flow_run``, or (None) those of flows that no longer live."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.Error, OSError):  # another user's, or gone
            continue
        labels = Labels.of_environment(environment)
        if labels and labels.found_by(flow_run):
            found.append((process, labels.shard))
    return found


def _oom_kills() -> int:
    """Processes that this machine's kernel has killed for memory so far; 0 where it doesn't say (macOS)."""
    try:
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:
        return 0
    return int(counters.get("oom_kill", 0))
