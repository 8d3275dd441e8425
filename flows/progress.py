"""Progress of a run: what the fan-out writes, and what the terminal and the Prefect UI show."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect.artifacts import acreate_progress_artifact, acreate_table_artifact, aupdate_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_logger

from flows.gpus import SlotRow, slot_table
from flows.reports import slug

PUBLISH_SECONDS = 1.0
SLOTS_SECONDS = 5.0
LAST_WORDS_SECONDS = 5.0

Slots = Callable[[], list[SlotRow]]


@dataclass
class ShardProgress:
    """What a running shard last said about itself."""

    done: float = 0
    total: float = 0
    unit: str = ""
    message: str = ""

    @classmethod
    def of_event(cls, event: Mapping[str, Any]) -> ShardProgress:
        known = {"done", "total", "unit", "message"} & event.keys()
        return cls(**{name: event[name] for name in known if event[name] is not None})

    @property
    def fraction(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0


@dataclass
class StageProgress:
    """One stage: ``shards`` in total, of which ``reused`` were found finished and ``finished`` ran now."""

    name: str
    shards: int = 0
    reused: int = 0
    finished: int = 0
    state: str = "waiting"  # waiting, running, done, failed, skipped
    running: dict[str, ShardProgress] = field(default_factory=dict)
    given_up: bool = False
    """It failed, and the run goes on without it."""
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def end(self, state: str) -> None:
        """It is "done", or "failed"."""
        self.ended = time.monotonic()
        self.state = state

    @property
    def seconds(self) -> float:
        """How long it took, or has been running."""
        return (self.ended or time.monotonic()) - self.began

    @property
    def in_shards(self) -> str:
        return f"{self.shards} shard{'s' if self.shards != 1 else ''}"

    @property
    def fraction(self) -> float:
        if self.state in ("done", "skipped") or self.given_up:
            return 1.0
        parts = self.reused + self.finished + sum(shard.fraction for shard in self.running.values())
        return parts / self.shards if self.shards else 0.0

    def describe(self) -> str:
        """One line: "12 of 40 shards, 8 of them reused; 3 running: 120 of 900 trials"."""
        if self.state in ("waiting", "skipped"):
            return self.state
        if not self.shards:
            return "nothing to do"
        if self.reused == self.shards:
            return f"{self.in_shards} reused"
        text = f"{self.reused + self.finished} of {self.in_shards}"
        if self.reused:
            text += f", {self.reused} of them reused"
        if self.state == "failed":
            return f"{text}; stopped"
        if self.running:
            text += f"; {len(self.running)} running"
            if work := self._work():
                text += f": {work}"
        return text

    def _work(self) -> str:
        """What the running shards do: their counts added up when they count the same thing."""
        shards = [shard for shard in self.running.values() if shard.total]
        if not shards or len({shard.unit for shard in shards}) > 1:
            return ""
        done, total = (sum(getattr(shard, name) for shard in shards) for name in ("done", "total"))
        text = f"{done:,.0f} of {total:,.0f} {shards[0].unit}".rstrip()
        return f"{text} ({shards[0].message})" if len(shards) == 1 and shards[0].message else text


@dataclass
class RunProgress:
    """All stages of a run, in order."""

    stages: dict[str, StageProgress] = field(default_factory=dict)
    tell: Callable[[str], None] = field(default=lambda text: None)
    """Shows a line that a stage left; set by who watches the run."""

    def plan(self, names: Sequence[str]) -> None:
        self.stages = {name: StageProgress(name) for name in names}

    def begin(self, name: str, shards: int, reused: int) -> StageProgress:
        self.stages[name] = StageProgress(name, shards, reused, state="running")
        return self.stages[name]

    def give_up(self, failed: str, following: Sequence[str]) -> None:
        """The run goes on without the stage that failed and those that would have followed from it."""
        self.stages[failed].state, self.stages[failed].given_up = "failed", True
        for name in following:
            self.stages[name] = StageProgress(name, state="skipped")

    @property
    def fraction(self) -> float:
        return sum(stage.fraction for stage in self.stages.values()) / max(1, len(self.stages))

    def describe(self) -> str:
        done = sum(stage.state == "done" for stage in self.stages.values())
        current = [stage for stage in self.stages.values() if stage.state in ("running", "failed")]
        text = f"{done} of {len(self.stages)} stages done"
        return "; ".join([text, *(f"{stage.name}: {stage.describe()}" for stage in current)])


# Set by a caller that watches the run live, such as the terminal; read by the flow it calls.
watched: ContextVar[RunProgress | None] = ContextVar("watched", default=None)


@contextlib.asynccontextmanager
async def published(run: RunProgress, prefix: str, slots: Slots | None = None) -> AsyncIterator[None]:
    """Keep one progress artifact for the run, one for each stage, and a table of ``slots`` up to date in Prefect."""
    over = asyncio.Event()
    publishing = asyncio.create_task(_Publisher(run, prefix, slots).run_until(over))
    try:
        yield
    finally:
        over.set()
        await asyncio.wait([publishing], timeout=LAST_WORDS_SECONDS)
        publishing.cancel()


class _Publisher:
    def __init__(self, run: RunProgress, prefix: str, slots: Slots | None) -> None:
        self._run = run
        self._prefix = prefix
        self._slots = slots
        self._slots_artifact: tuple[UUID, list[SlotRow]] | None = None
        self._slots_due = 0.0
        self._artifacts: dict[str, tuple[UUID, str]] = {}

    async def run_until(self, over: asyncio.Event) -> None:
        while not over.is_set():
            await self.publish()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), PUBLISH_SECONDS)
        self._slots_due = 0.0
        await self.publish()

    async def publish(self) -> None:
        try:
            await self._show("progress", self._run.fraction, self._run.describe())
            for number, stage in enumerate(list(self._run.stages.values()), start=1):
                if stage.shards:
                    await self._show(f"stage {number:02} {stage.name}", stage.fraction, stage.describe())
            if self._slots and time.monotonic() >= self._slots_due:
                await self._show_slots(self._slots)
                self._slots_due = time.monotonic() + SLOTS_SECONDS
        except Exception as error:  # the picture of the work must not stop the work
            get_logger("flows").warning("progress could not be shown in Prefect: %s", error)

    async def _show(self, name: str, fraction: float, text: str) -> None:
        percent = round(100 * fraction, 1)
        shown = f"{percent} {text}"
        known = self._artifacts.get(name)
        if known is None:
            key = slug(f"{self._prefix} {name}")
            artifact = await acreate_progress_artifact(percent, key=key, description=text)
        elif known[1] != shown:
            artifact = await aupdate_progress_artifact(known[0], percent, description=text)
        else:
            return
        self._artifacts[name] = (artifact, shown)

    async def _show_slots(self, slots: Slots) -> None:
        rows = await asyncio.to_thread(slots)
        if self._slots_artifact is None:
            text = "The GPUs of this host and the places on its CPU that are in use, across all flows."
            key = slug(f"gpus {socket.gethostname()}")
            self._slots_artifact = (await acreate_table_artifact(slot_table(rows), key=key, description=text), rows)
        elif self._slots_artifact[1] != rows:
            artifact = self._slots_artifact[0]
            async with get_client() as client:
                await client.update_artifact(artifact, ArtifactUpdate(data=json.dumps(slot_table(rows))))
            self._slots_artifact = (artifact, rows)
