"""Fan-out: run the shards of a stage that aren't finished yet, each as a Prefect task run in a slot.

::

    async with FanOut(store, execution, stages=("prepare", "trials")) as fan:
        [prepared] = await fan.run("prepare", [spec])
        trials = await fan.run("trials", specs)

Everything is asynchronous and lives in the flow's event loop, so that a cancelled flow, whatever cancelled
it, unwinds through each of its shards and stops them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from prefect import Flow, get_run_logger
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run as this_flow_run
from prefect.tasks import exponential_backoff

from flows.dead_runs import close_dead_runs, recorded
from flows.execution import Execution
from flows.gpus import slot_rows
from flows.launchers.base import ShardError, ShardLost
from flows.progress import RunProgress, StageProgress, published, watched
from flows.shard_task import Shard, Stage, Turn, run_shard
from flows.slots import SlotPool
from flows.termination import ended_by_sigterm
from tasks import registry
from tasks.artifacts.catalog import finished
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store
from tasks.artifacts.verify import check_small
from tasks.errors import EXIT_FAILED, EXIT_TRANSIENT, BadInput, TransientError
from tasks.spec import TaskSpec

RETRY_BACKOFF_SECONDS = 2
SHORT_HASH = 8


class StageFailed(RuntimeError):
    """A stage could not be finished; its finished shards and chunks are kept for the next run.

    ``field`` is the name of what the user gave, where a shard refused that, and ``exit_status`` how a command ends
    that meets this.
    """

    def __init__(self, message: str, field: str | None = None, exit_status: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.field = field
        self.exit_status = exit_status


class FanOut:
    """Runs the stages of one flow run. ``stages`` names those to come, for the picture of the progress.

    Raises:
        BadInput: the launcher can't be reached, or has no such device.
    """

    def __init__(self, store: Store, execution: Execution, stages: Sequence[str] = ()) -> None:
        self._store = store
        self._execution = execution
        self._launcher = execution.make_launcher()
        self._slots(gpus=True)  # a GPU that is not there is refused before anything runs
        self._progress = watched.get() or RunProgress()
        self._progress.plan(stages)
        self._open = contextlib.AsyncExitStack()
        self._running: list[Stage] = []

    async def __aenter__(self) -> FanOut:
        self._log = get_run_logger()
        await asyncio.to_thread(self._store.size, "shards")  # one that can't be reached is told, and given up, now
        self._open.enter_context(ended_by_sigterm())
        self._open.enter_context(recorded(str(this_flow_run.get_id())))
        if swept := await self._launcher.sweep():
            self._log.warning("stopped what a dead run had left behind: %s", ", ".join(swept))
        try:
            if closed := await close_dead_runs():
                self._log.warning("runs whose process was killed are closed: %s", ", ".join(closed))
        except Exception as error:  # of the picture, not of the work
            self._log.warning("dead runs could not be closed: %s", error)
        self._open.push_async_callback(self._launcher.close)
        self._open.push_async_callback(self._launcher.sweep, this_flow_run.get_id())
        rows = slot_rows if self._launcher.leases_this_host else None
        await self._open.enter_async_context(published(self._progress, this_flow_run.get_flow_name(), rows))
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._open.__aexit__(*error)

    async def run(self, stage: str, specs: Sequence[TaskSpec], *, gpus: int = 1, check: bool = False) -> list[Manifest]:
        """Finish every shard of ``specs`` and return their manifests, in order. Stages may run side by side.

        ``gpus`` is how many GPUs each shard gets where there are any; 0 keeps light work off them. A shard that
        fails for good stops the stage at once: the others lose at most a chunk each. One whose retries are used up
        lets the others finish first. With ``check``, shards that are reused and their inputs are compared with their
        checksums first, as far as that is quick.

        Raises:
            CorruptObject: the check found damage.
            BadInput: the launcher has no environment for a shard, or fewer GPUs than it is to get.
            StageFailed: a shard could not be finished.
        """
        wanted = {spec.hash: spec for spec in specs}
        reusable = [spec for spec in wanted.values() if not registry.kind(spec.task).always_run]
        done = await asyncio.to_thread(finished, self._store, reusable)
        todo = [spec for spec in wanted.values() if spec.hash not in done]
        self._log.info("%s: reused %d of %d shards", stage, len(done), len(wanted))
        progress = self._progress.begin(stage, shards=len(wanted), reused=len(done))
        try:
            for spec in reusable if check else []:
                if spec.hash in done:
                    await asyncio.to_thread(check_small, self._store, spec)
            if todo:
                with self._begun(progress, gpus) as running:
                    for environment in {registry.environment(spec) for spec in todo}:
                        await asyncio.to_thread(self._launcher.check_environment, environment, running.slots.device)
                    done |= await self._run(todo, running)
        except BaseException:
            progress.end("failed")
            raise
        progress.end("done")
        return [done[spec.hash] for spec in specs]

    def tell(self, text: str) -> None:
        """Say something that was found on the way, in the run's log and to who watches it."""
        self._log.info("%s", text)
        self._progress.tell(text)

    def stop(self, failed: str) -> None:
        """What runs is about to be cancelled since ``failed`` failed: its shards end as cancelled, not as crashed."""
        for stage in self._running:
            stage.stopped_by = stage.stopped_by or failed

    def give_up(self, failed: str, following: Sequence[str]) -> None:
        """The run goes on without the stage that failed and those that would have followed from it."""
        self._progress.give_up(failed, following)

    @contextlib.contextmanager
    def _begun(self, progress: StageProgress, gpus: int) -> Iterator[Stage]:
        slots = self._slots(gpus > 0)
        each = gpus if slots.device == "cuda" else 1
        if each > len(slots):
            problem = f"shards of {progress.name} are to get {each} GPUs"
            raise BadInput("execution.slots", len(slots), problem, "raise it, or run where there are as many")
        stage = Stage(
            progress,
            self._store,
            self._launcher,
            slots,
            each,
            self._execution.batch_size,
            None if self._launcher.keeps_time else self._execution.timeout_minutes,
        )
        self._running.append(stage)
        try:
            yield stage
        finally:
            self._running.remove(stage)

    def _slots(self, gpus: bool) -> SlotPool:
        settings = self._execution
        device = settings.device if gpus else "cpu"
        return self._launcher.slots(device=device, count=settings.slots, threads=settings.threads)

    async def _run(self, todo: Sequence[TaskSpec], stage: Stage) -> dict[str, Manifest]:
        """Run ``todo`` and return the manifests by hash."""
        done: dict[str, Manifest] = {}
        lost: list[Exception] = []
        shard_task = run_shard.with_options(
            name=stage.progress.name,
            retries=self._execution.retries,
            retry_delay_seconds=exponential_backoff(RETRY_BACKOFF_SECONDS),
        )

        async def run_one(number: int, spec: TaskSpec, turn: Turn) -> None:
            name = f"{stage.progress.name} {number}/{len(todo)} {spec.hash[:SHORT_HASH]}"
            try:
                result = await shard_task(name, Shard(stage, name, spec, turn))
            except (ShardLost, TransientError) as error:
                lost.append(error)
            except Exception:
                stage.stopped_by = name
                raise
            else:
                if isinstance(result, Manifest):
                    done[spec.hash] = result

        try:
            async with asyncio.TaskGroup() as group:
                for number, spec in enumerate(todo, start=1):
                    turn = await Turn.taken(stage.turns)
                    group.create_task(run_one(number, spec, turn))
        except ExceptionGroup as failed:
            first = failed.exceptions[0]
            if isinstance(first, ShardError):
                raise StageFailed(str(first), first.field, first.exit_status) from None
            raise first from None
        if lost:
            raise StageFailed(_summary(lost, len(todo)), exit_status=EXIT_TRANSIENT)
        return done


def _summary(lost: Sequence[Exception], shards: int) -> str:
    if len(lost) == 1:
        return str(lost[0])
    return f"{len(lost)} of {shards} shards were lost; the first: {lost[0]}"


async def sweep(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Hook for cancelled and crashed flows: stop what carries their label. Runs in another process."""
    execution = Execution.model_validate(flow_run.parameters.get("execution") or {})
    await execution.make_launcher().sweep(str(flow_run.id))
