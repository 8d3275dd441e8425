"""One model of an outlier study on its way through the stages: what it meets is its own, and the others go on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from prefect import get_run_logger

from flows.fanout import FanOut, StageFailed
from flows.outliers_plan import Examination, Examined, Failure
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.errors import BadInput, CorruptObject, TransientError
from tasks.spec import TaskSpec

EVERY_MODELS = ("text.location", "text.format", "text.column", "store")
"""Fields that mean the same to all models: when one of them is refused, no model can go on."""


class ModelRun:
    """``examined`` is set once the summary is there, ``failure`` (with its ``error``) when a stage has failed; a model
    of which the functional check alone failed has both."""

    def __init__(self, examination: Examination, store: Store, *, alone: bool) -> None:
        self.examined: Examined | None = None
        self.failure: Failure | None = None
        self.error: Exception | None = None
        self._examination = examination
        self._store = store
        self._alone = alone
        self._stages = ["prepare", "scan", "summary"]
        if examination.settings.ablation.enabled:
            self._stages.append("ablation")
        self._stage = self._stages[0]

    @property
    def titles(self) -> list[str]:
        """What its stages are called."""
        return [self._title(stage) for stage in self._stages]

    async def examine(self, fan: FanOut) -> None:
        """Run all stages.

        Raises:
            StageFailed, BadInput: for a reason that concerns every model.
        """
        try:
            await self._examine(fan)
        except (StageFailed, BadInput, TransientError, CorruptObject) as error:
            if getattr(error, "field", None) in EVERY_MODELS:
                fan.stop(self._title(self._stage))
                raise
            fan.give_up(self._title(self._stage), self.titles[self._stages.index(self._stage) + 1 :])
            get_run_logger().error("%s failed: %s", self._title(self._stage), error)
            self.error = error
            self.failure = Failure(self._examination, self._stage, _in_short(error))

    async def _examine(self, fan: FanOut) -> None:
        this = self._examination

        async def run(stage: str, specs: Sequence[TaskSpec], gpus: int = 0) -> list[Manifest]:
            self._stage = stage
            return await fan.run(self._title(stage), specs, gpus=gpus)

        [prepared] = await run("prepare", [this.prepare()])
        study = await self._json(prepared, "study")
        scans = await run("scan", this.scan(prepared, study), this.model.gpus)
        [summary] = await run("summary", [this.summary(prepared, scans)])
        self.examined = Examined(this, prepared, summary)
        if "ablation" in self._stages:
            found = await self._json(summary, "summary")
            specs = [this.ablation(prepared, summary, study)] if this.has_to_check(found) else []
            ablation = next(iter(await run("ablation", specs, this.model.gpus)), None)
            self.examined = Examined(this, prepared, summary, ablation)

    def _title(self, stage: str) -> str:
        """In a sweep a stage says whose it is."""
        return stage if self._alone else f"{stage}: {self._examination.name}"

    async def _json(self, manifest: Manifest, name: str) -> Any:
        return await asyncio.to_thread(lambda: Shard(self._store, manifest.spec.path).json(name))


def _in_short(error: Exception) -> str:
    """An error in one line, without the name of its shard and the trace."""
    first = str(error).partition("\n")[0]
    return re.sub(r"^.* \d+/\d+ [0-9a-f]{8} ", "", first)
