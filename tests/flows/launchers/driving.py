"""A shard that a launcher runs as it does for a flow, for the tests of every launcher."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from flows.holders import domain, holder
from flows.launchers.base import Exit, Labels, Launcher, ShardRun
from flows.slots import Lease
from tasks.artifacts.catalog import store_spec
from tasks.artifacts.store import Store
from tasks.spec import TaskSpec

HandleT = TypeVar("HandleT")


def run_of(store: Store, spec: TaskSpec, flow_run: str = "run", held_by: str = "") -> ShardRun:
    """An attempt at a shard on the CPU, held by this process unless ``held_by`` says otherwise."""
    labels = Labels(flow_run, "task-run", "some stage", spec.path, held_by or holder(), domain(), "cpu-0")
    return ShardRun(store_spec(store, spec), labels, device="cpu", threads=1)


async def driven(
    by: Launcher[HandleT], run: ShardRun, lease: Lease, act: Callable[[HandleT], Awaitable[object]] | None = None
) -> tuple[list[dict[str, Any]], Exit]:
    """Run a shard to its end: its events, and how it ended. ``act`` does something to it at its first progress.

    The launcher is closed."""
    events = []
    handle = await by.start(run, lease)
    try:
        async for event in by.follow(handle):
            events.append(event)
            if act and event["event"] == "progress":
                await act(handle)
                act = None
        return events, await by.wait(handle)
    finally:
        await by.stop(handle)
        await by.close()
