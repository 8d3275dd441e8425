"""A shard whose pod follows a script: what it says, how it is started and followed, how it ended."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from typing import Any

from flows.holders import domain, holder
from flows.launchers.base import Exit, Labels, ShardError, ShardRun
from flows.launchers.kubernetes.launcher import KubernetesLauncher, ShardJob
from flows.launchers.settings import ContainerSettings, KubernetesSettings
from tests.flows.launchers.driving import driven
from tests.flows.launchers.kubernetes.api import Line, Step

IMAGE = "registry.example/tomograph-torch:0.1.0-cuda@sha256:" + "5" * 64
SHARD = "shards/toy.squares/3f62e74c28abf303003f4317804bf0f1"
EVENTS = [
    {"event": "started", "task": "toy.squares", "spec_hash": "3f62e74c", "device": "cuda"},
    {"event": "log", "message": "info: device cuda"},
    {"event": "progress", "done": 1, "total": 3, "unit": "chunks", "message": ""},
    {"event": "progress", "done": 3, "total": 3, "unit": "chunks", "message": ""},
    {"event": "finished", "shard": SHARD, "digest": "9a8b", "counts": {"numbers": 10}, "reused": False},
]


def lines(*events: dict[str, Any] | str, gates: Sequence[threading.Event | None] = ()) -> list[Line]:
    """A log with one of these every 0.3 seconds."""
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    held = [*gates, *[None] * (len(texts) - len(gates))]
    return [Line(0.3 * i, text, gate) for i, (text, gate) in enumerate(zip(texts, held, strict=True))]


def runs(*events: dict[str, Any] | str, **more: Any) -> Step:
    return Step("running", log=lines(*(events or EVENTS)), **more)


SUCCESS = [Step("pending"), Step("creating"), runs(), Step("succeeded")]


def launcher(timeout_minutes: float | None = None, volumes: Sequence[str] = (), **settings: Any) -> KubernetesLauncher:
    container = ContainerSettings(images={"torch": IMAGE}, memory="64GiB", volumes=list(volumes))
    return KubernetesLauncher(container, KubernetesSettings(**settings), timeout_minutes)


def labels(**given: str) -> Labels:
    known = {"flow_run": "flow-run-1", "task_run": "task-run-1", "stage": "squares", "shard": SHARD}
    return Labels(**{**known, "holder": holder(), "domain": domain(), "slots": "place-0"} | given)


def shard_run(**given: str) -> ShardRun:
    return ShardRun(f"s3://bucket/prefix/{SHARD}/spec.json", labels(**given), "cuda", 4)


async def started(by: KubernetesLauncher, run: ShardRun | None = None, gpus: int = 1) -> ShardJob:
    with await by.slots(device="auto", count=None, threads=None).lease(gpus) as lease:
        return await by.start(run or shard_run(), lease)


def finish(by: KubernetesLauncher | None = None, run: ShardRun | None = None) -> tuple[list[dict[str, Any]], Exit]:
    """Run a shard to its end, as a flow does."""

    async def main() -> tuple[list[dict[str, Any]], Exit]:
        using = by or launcher()
        with await using.slots(device="auto", count=None, threads=None).lease(1) as lease:
            return await driven(using, run or shard_run(), lease)

    return asyncio.run(asyncio.wait_for(main(), 60))


def error_of(end: Exit) -> ShardError:
    error = end.error()
    assert error is not None
    return error


def said(events: list[dict[str, Any]]) -> str:
    return "\n".join(event["message"] for event in events if event["event"] == "log")


def own(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the shard said itself."""
    ours = ("runs in the pod", "waits for its place", "ErrImagePull", "ImagePullBackOff", "warning: ")
    return [event for event in events if not str(event.get("message")).startswith(ours)]
