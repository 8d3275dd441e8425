"""Records that the contents of all reports share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of every part of a report's content: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Caution(Record):
    """Something that weakens the conclusions."""

    code: str
    severity: Literal["warning", "note"]
    text: str


def warning(code: str, text: str) -> Caution:
    return Caution(code=code, severity="warning", text=text)


def note(code: str, text: str) -> Caution:
    return Caution(code=code, severity="note", text=text)


class Source(Record):
    """A finished shard (or group of equal stage) that the report was made from."""

    stage: str
    shards: int
    counts: dict[str, int]
    digests: list[str]


class StageRun(Record):
    """How one stage ran; None where a manifest does not say.

    `seconds`: sum over its shards. Chunks that an interrupted run had left are counted, not timed.
    """

    stage: str
    shards: int
    seconds: float | None
    reused_chunks: int
    peak_memory_bytes: int | None
    peak_gpu_bytes: int | None
    devices: list[str]


class RunFacts(Record):
    """Timings, memory, hosts and versions: the only part that may differ between equal studies."""

    stages: list[StageRun]
    engines: list[str]
    """What sampled the trials: name, version, trials in flight."""
    versions: dict[str, list[str]]
    hosts: list[str]
