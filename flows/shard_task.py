"""One shard of a stage as a Prefect task run: attempted in a slot, followed live, retried when that can help."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging.loggers import LoggingAdapter
from prefect.runtime import flow_run as this_flow_run
from prefect.runtime import task_run as this_task_run
from prefect.states import Cancelled

from flows.holders import domain, holder
from flows.launchers.base import EXIT_TRANSIENT, Exit, Labels, Launcher, ShardLost, ShardRun
from flows.progress import ShardProgress, StageProgress
from flows.slots import Lease, Occupant, SlotPool
from tasks import registry
from tasks.artifacts.catalog import store_spec
from tasks.artifacts.manifest import Manifest, read_manifest
from tasks.artifacts.store import Store
from tasks.errors import TransientError
from tasks.spec import TaskSpec

RETRY_JITTER = 0.5

told = logging.getLogger("tomograph.shard")
"""What a shard warns of; the terminal shows it."""


@dataclass
class Stage:
    """What the shards of one stage share."""

    progress: StageProgress
    store: Store
    launcher: Launcher[Any]
    slots: SlotPool
    slots_per_shard: int
    batch_size: int | None
    timeout_minutes: float | None
    turns: asyncio.Semaphore = field(init=False)
    """As many as fit the slots: a shard becomes a task run when its turn comes, not before."""
    stopped_by: str | None = None
    """The shard whose failure ends the stage."""

    def __post_init__(self) -> None:
        self.turns = asyncio.Semaphore(len(self.slots) // self.slots_per_shard)


class Turn:
    """The right to run a shard. The first attempt comes with it; a retry gives it up while it waits."""

    def __init__(self, turns: asyncio.Semaphore) -> None:
        self._turns = turns
        self._fresh = True

    @classmethod
    async def taken(cls, turns: asyncio.Semaphore) -> Turn:
        await turns.acquire()
        return cls(turns)

    async def __aenter__(self) -> None:
        if not self._fresh:
            await self._turns.acquire()
        self._fresh = False

    async def __aexit__(self, *_: object) -> None:
        self._turns.release()


class Shard:
    """One shard of a stage, to be attempted until it is finished."""

    def __init__(self, stage: Stage, name: str, spec: TaskSpec, turn: Turn) -> None:
        self.stage = stage
        self._name = name
        self._spec = spec
        self._turn = turn

    async def attempt(self) -> Manifest:
        """Run the shard in its slots and return its manifest.

        Raises:
            ShardError: it did not finish.
            TransientError, StoreError: the store can't be read or written.
        """
        store, log = self.stage.store, get_run_logger()
        async with self._turn:
            spec_url = await asyncio.to_thread(store_spec, store, self._spec)
            with await self.stage.slots.lease(self.stage.slots_per_shard, self._occupant()) as lease:
                log.info("%s runs in %s", self._spec.path, lease.name)
                end = await self._run(spec_url, lease, log)
        if error := end.error():
            raise type(error)(f"{self._name} {error}", error.field)
        try:
            manifest = await asyncio.to_thread(read_manifest, store, self._spec.path)
        except FileNotFoundError:
            raise ShardLost(f"{self._name} ended without an error, but left no manifest") from None
        self.stage.progress.finished += 1
        return manifest

    async def _run(self, spec_url: str, lease: Lease, log: LoggingAdapter) -> Exit:
        launcher, running = self.stage.launcher, self.stage.progress.running
        handle = await launcher.start(self._shard_run(spec_url, lease), lease)
        running[self._spec.hash] = ShardProgress()
        minutes = self.stage.timeout_minutes
        limit = asyncio.timeout(minutes * 60 if minutes else None)
        try:
            async with limit:
                async for event in launcher.follow(handle):
                    if event["event"] == "log":
                        message = event.get("message", "")
                        log.info("%s", message)
                        if message.startswith("warning: "):
                            told.warning("%s: %s", self._name, message.removeprefix("warning: "))
                    elif event["event"] == "progress":
                        running[self._spec.hash] = ShardProgress.of_event(event)
                return await launcher.wait(handle)
        except TimeoutError:
            if not limit.expired():
                raise
            return Exit(EXIT_TRANSIENT, lost=f"took longer than execution.timeout_minutes = {minutes:g}")
        finally:
            del running[self._spec.hash]
            await launcher.stop(handle)

    def _occupant(self) -> Occupant:
        return Occupant(flow=str(this_flow_run.get_name()), shard=self._name, since=time.time())

    def _shard_run(self, spec_url: str, lease: Lease) -> ShardRun:
        return ShardRun(
            spec_url=spec_url,
            labels=Labels(
                flow_run=str(this_flow_run.get_id()),
                task_run=str(this_task_run.get_id()),
                stage=self.stage.progress.name,
                shard=self._spec.path,
                holder=holder(),
                domain=domain(),
                slots=",".join(slot.name for slot in lease.slots),
            ),
            device=lease.device,
            threads=lease.threads,
            batch_size=self.stage.batch_size,
            environment=registry.environment(self._spec),
            preload=registry.kind(self._spec.task).preload,
        )


def _worth_a_retry(_task: Task[..., Any], _run: TaskRun, state: State) -> bool:
    """Retry what was lost, and faults of the store that pass; not what a second attempt would meet again."""
    return isinstance(state.data, ShardLost | TransientError)


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retry_condition_fn=_worth_a_retry,
    retry_jitter_factor=RETRY_JITTER,
)
async def run_shard(name: str, shard: Shard) -> Manifest | State:
    """Run one shard of the stage. Returns a cancelled state when another shard's failure has ended the stage."""
    try:
        return await shard.attempt()
    except asyncio.CancelledError:
        if shard.stage.stopped_by is None:
            raise
        return Cancelled(
            message=f"stopped since {shard.stage.stopped_by} failed; a new run goes on from its last chunk"
        )
