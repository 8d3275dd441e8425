"""What a task function sees: its parameters and inputs, chunks to fill, and a place for its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from tasks import provenance
from tasks.artifacts.chunks import Chunk, ChunkRecord, committed_chunks
from tasks.artifacts.manifest import Output, join_outputs
from tasks.artifacts.shard import Outputs, Shard
from tasks.artifacts.store import Store
from tasks.artifacts.writer import ShardWriter
from tasks.progress import Report, Throttle, silent
from tasks.spec import InputRef, TaskSpec

if TYPE_CHECKING:
    from tasks.artifacts.tensors import Tensor

READERS = 16


@dataclass(frozen=True)
class Runtime:
    """How a shard runs. It may change the last bits of a result, no more, and the manifest says it."""

    device: str = "cpu"
    batch_size: int | None = None
    """Sequences in one forward pass; None leaves it to the task."""
    threads: int | None = None


class ShardContext:
    """One run of one shard. The task function gets it as its only argument."""

    def __init__(
        self,
        store: Store,
        spec: TaskSpec,
        params: BaseModel,
        runtime: Runtime | None = None,
        report: Report = silent,
        *,
        resume: bool = True,
    ) -> None:
        self.spec = spec
        self.params: Any = params
        self.seed = spec.seed
        self.runtime = runtime or Runtime()
        self.notes: dict[str, Any] = {}
        self.store = store
        self._folder = store.at(spec.path)
        self._report = report
        self._resume = resume
        self._throttle = Throttle()
        self._whole = ShardWriter(self._folder)
        self._records: dict[int, ChunkRecord] = {}
        self._total: int | None = None
        self.reused_chunks = 0
        self.writing_seconds = 0.0
        self._folder.remove_stale()

    def input(self, name: str) -> Shard:
        """The one shard given as input ``name``."""
        ref = self._ref(name)
        if not isinstance(ref, InputRef):
            raise TypeError(f"input {name!r} is a list of shards; use ctx.inputs({name!r})")
        return Shard.open(self.store, ref, f"inputs.{name}")

    def inputs(self, name: str) -> list[Shard]:
        """The shards given as input ``name``, in order."""
        refs = self._ref(name)
        if isinstance(refs, InputRef):
            raise TypeError(f"input {name!r} is one shard; use ctx.input({name!r})")
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(lambda ref: Shard.open(self.store, ref, f"inputs.{name}"), refs))

    def chunks(self, total: int) -> Iterator[Chunk]:
        """The chunks that are not committed yet, in order; each must be committed before the next is taken.

        ``total`` must follow from the spec alone. Call it once.
        """
        if self._total is not None:
            raise RuntimeError("ctx.chunks was called twice")
        self._total = total
        processor = provenance.processor(self.runtime.device)
        if self._resume:
            self._records = committed_chunks(self._folder, self.spec.hash, total, processor)
        self.reused_chunks = len(self._records)
        if self._records:
            self.log(f"{len(self._records)} of {total} chunks are there from an earlier run")
        for index in range(total):
            if index in self._records:
                continue
            sibling = next(iter(self._records.values()), None)
            chunk = Chunk(self._folder, self.spec.hash, index, total, processor, sibling)
            yield chunk
            if chunk.record is None:
                raise RuntimeError(f"chunk {index} was not committed before the next one was taken")
            self._records[index] = chunk.record
            self.writing_seconds += chunk.seconds

    @property
    def committed(self) -> Outputs:
        """What the committed chunks hold so far, verified on reading like any shard."""
        return Outputs(self._folder, join_outputs(self._records[index].outputs for index in sorted(self._records)))

    def table(self, name: str, table: pa.Table) -> None:
        self._whole.table(name, table)

    def tensors(self, name: str, values: Mapping[str, Tensor]) -> None:
        self._whole.tensors(name, values)

    def json(self, name: str, value: Any) -> None:
        """Write a JSON value as the output ``name``."""
        self._whole.json(name, value)

    def file(self, name: str, data: bytes) -> None:
        """Write a file as the output ``name`` (with its ending)."""
        self._whole.file(name, data)

    def count(self, **counts: int) -> None:
        """Add to the counts of the manifest."""
        self._whole.count(**counts)

    def note(self, key: str, value: Any) -> None:
        """Leave something about this run (never about its result) in the manifest."""
        self.notes[key] = from_json(to_json(value, inf_nan_mode="strings", fallback=_plain))

    def progress(self, done: float, total: float, unit: str = "", message: str = "") -> None:
        """Say how far the work is; called as often as one likes."""
        if self._throttle.passes(last=done >= total):
            event = {"event": "progress", "done": done, "total": total, "unit": unit, "message": message}
            self._report(event)

    def log(self, message: str) -> None:
        self._report({"event": "log", "message": message})

    def results(self) -> tuple[dict[str, Output], dict[str, int]]:
        """All outputs and counts of the shard, once the task function is done.

        Raises:
            RuntimeError: chunks are missing.
            ValueError: an output was given both by chunks and for the whole shard.
        """
        if self._total is not None and len(self._records) < self._total:
            missing = sorted(set(range(self._total)) - self._records.keys())
            raise RuntimeError(f"the task ended without its chunks {missing[:10]} of {self._total}")
        records = [self._records[index] for index in sorted(self._records)]
        chunked = join_outputs(record.outputs for record in records)
        if both := chunked.keys() & self._whole.outputs.keys():
            raise ValueError(f"outputs {sorted(both)} were given by chunks and for the whole shard")
        counts = Counter(self._whole.counts)
        for record in records:
            counts.update(record.counts)
        outputs = chunked | self._whole.outputs
        self.writing_seconds += self._whole.seconds
        return {name: outputs[name] for name in sorted(outputs)}, dict(sorted(counts.items()))

    def _ref(self, name: str) -> InputRef | list[InputRef]:
        if name not in self.spec.inputs:
            there = ", ".join(sorted(self.spec.inputs)) or "none"
            raise KeyError(f"{self.spec.task} was planned without the input {name!r}; it has {there}")
        return self.spec.inputs[name]


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)
