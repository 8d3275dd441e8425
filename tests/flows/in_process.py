"""Shards in threads of the flow's process: a launcher without the seconds that each process takes to start.

What a flow sees is what it sees of a process: events that went through JSON, exit codes, the shard's own account of
its failure. Only a process can be killed; a shard in a thread ends at its next event after it was told to. Shards of
another environment than the tests' own, such as vLLM's, run in processes all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from flows.execution import Execution
from flows.launchers.base import Exit, Launcher, ShardRun
from flows.launchers.process import ProcessLauncher, ShardProcess
from flows.slots import Lease
from tasks import runner
from tasks.__main__ import failure_of
from tasks.artifacts.catalog import load_spec, split_spec_url
from tasks.artifacts.store import Store
from tasks.context import Runtime
from tasks.errors import EXIT_OK
from tasks.progress import EventHandler, Report
from tasks.spec import TORCH
from tasks.termination import Terminated

_one_at_a_time = threading.Lock()
"""Loading a model changes settings of its whole process, so two threads may not do it at once."""


@dataclass
class ShardThread:
    """A running shard, and the events that it has reported; None comes after the last one."""

    events: asyncio.Queue[dict[str, Any] | None] = field(default_factory=asyncio.Queue)
    told_to_end: threading.Event = field(default_factory=threading.Event)
    ended: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    failure: dict[str, Any] = field(default_factory=dict)


class InProcessLauncher(ProcessLauncher):
    """``tasks.runner.run_shard`` in a thread, one shard at a time."""

    async def start(self, run: ShardRun, lease: Lease) -> ShardThread | ShardProcess:
        if run.environment != TORCH:
            return await super().start(run, lease)
        handle = ShardThread()
        threading.Thread(target=_run, args=(run, handle, asyncio.get_running_loop()), daemon=True).start()
        return handle

    async def follow(self, handle: ShardThread | ShardProcess) -> AsyncIterator[dict[str, Any]]:
        if isinstance(handle, ShardProcess):
            async for event in super().follow(handle):
                yield event
            return
        while (event := await handle.events.get()) is not None:
            if event["event"] == "failed":
                handle.failure = event
            yield event

    async def wait(self, handle: ShardThread | ShardProcess) -> Exit:
        if isinstance(handle, ShardProcess):
            return await super().wait(handle)
        return Exit(await handle.ended, handle.failure)

    async def stop(self, handle: ShardThread | ShardProcess) -> None:
        if isinstance(handle, ShardProcess):
            return await super().stop(handle)
        handle.told_to_end.set()
        await asyncio.wait([handle.ended])


@contextlib.contextmanager
def shards_in_process() -> Iterator[None]:
    """Flows that are to run their shards in processes run them in threads instead."""
    make_launcher = Execution.make_launcher

    def in_process(self: Execution) -> Launcher[Any]:
        return InProcessLauncher() if self.launcher == "process" else make_launcher(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "make_launcher", in_process)
        yield


def _run(run: ShardRun, handle: ShardThread, loop: asyncio.AbstractEventLoop) -> None:
    """What ``python -m tasks run`` does, with the events in a queue."""

    def tell(event: dict[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=False, default=str)
        loop.call_soon_threadsafe(handle.events.put_nowait, json.loads(line))

    def report(event: dict[str, Any]) -> None:
        if handle.told_to_end.is_set():
            raise Terminated("the shard was told to end")
        tell(event)

    code = EXIT_OK
    try:
        with _one_at_a_time, _logged(report), _threads(run.threads):
            root, shard = split_spec_url(run.spec_url)
            store = Store(root)
            runtime = Runtime(run.device, run.batch_size, run.threads)
            runner.run_shard(store, load_spec(store, shard), runtime, report)
    except BaseException as error:
        code = failure_of(error, tell)
    finally:
        loop.call_soon_threadsafe(handle.events.put_nowait, None)
        loop.call_soon_threadsafe(handle.ended.set_result, code)


@contextlib.contextmanager
def _logged(report: Report) -> Iterator[None]:
    """This thread's log as events, as the process of a shard has it."""
    logger, handler = logging.getLogger("tomograph"), EventHandler(report)
    thread, level = threading.get_ident(), logger.level
    handler.addFilter(lambda record: record.thread == thread)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many threads as the process of a shard would have: they decide last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
