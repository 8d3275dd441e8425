"""What a container around a shard costs, and how busy shards that do nothing keep four slots.

Needs a Docker engine and the image of the flows (`make images`), which runs the toy tasks.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.server import NO_TELEMETRY, QUIET_CONSOLE, started_api
from tests.benchmarks.rows import row
from tests.containers.engine import FLOWS_IMAGE, engine, toy_execution

SLOTS = 4
SHARDS = 200
ALONE = 12
"""Shards one after the other, of each launcher."""

MIN_BUSY = 0.9


def run() -> list[dict[str, Any]]:
    """Rows of the table."""
    names = (
        "containers: from the lease of a slot to the shard's first word",
        "containers: the same for a subprocess",
        f"containers: {SHARDS} no-op shards over {SLOTS} slots, slots leased",
        f"containers: {SHARDS} no-op shards over {SLOTS} slots, a container started or running",
        f"containers: {SHARDS} no-op shards over {SLOTS} slots",
    )
    client = engine()
    if client is None or not client.images.list(FLOWS_IMAGE):
        reason = f"no Docker engine with the image {FLOWS_IMAGE}"
        return [row(name, None, "", note=reason) for name in names]
    container, process = (_in_a_fresh_process(launcher, "alone") for launcher in ("docker", "process"))
    full = _in_a_fresh_process("docker", "full")
    note = f"{full['leases']} leases, of which the first {SLOTS} and the last {SLOTS} are left out"
    return [
        row(names[0], 1000 * container["first_word"], "ms"),
        row(names[1], 1000 * process["first_word"], "ms"),
        row(names[2], full["leased"], "of the time", at_least=MIN_BUSY, note=note),
        row(names[3], full["containers"], "of the time", at_least=MIN_BUSY),
        row(names[4], full["seconds"], "s"),
    ]


def _in_a_fresh_process(launcher: str, measure: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            **NO_TELEMETRY,
            **QUIET_CONSOLE,
            "PREFECT_HOME": str(Path(folder) / "prefect"),
            "TOMOGRAPH_RUNTIME_DIR": str(Path(folder) / "runtime"),
            "TOMOGRAPH_PLUGINS": "tests.toy_tasks",
        }
        command = [sys.executable, "-m", "tests.benchmarks.bench_containers", launcher, measure, folder]
        output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        return json.loads(output.splitlines()[-1])


class Spans:
    """When each slot was leased, and when a launcher was at work in it; times in seconds."""

    def __init__(self) -> None:
        self.leased: list[tuple[str, float, float]] = []
        self.at_work: list[tuple[str, float, float]] = []
        self.first_words: list[float] = []

    def watch(self, launcher: Any) -> None:
        """Note what ``launcher`` does from now on."""
        start, follow, wait = launcher.start, launcher.follow, launcher.wait
        begun: dict[int, tuple[str, float]] = {}

        async def starting(run: Any, lease: Any) -> Any:
            began, release = time.monotonic(), lease.release

            def released() -> None:
                self.leased.append((lease.name, began, time.monotonic()))
                release()

            lease.release = released
            handle = await start(run, lease)
            begun[id(handle)] = (lease.name, began)
            return handle

        async def following(handle: Any) -> Any:
            first = True
            async for event in follow(handle):
                if first:
                    self.first_words.append(time.monotonic() - begun[id(handle)][1])
                    first = False
                yield event

        async def waiting(handle: Any) -> Any:
            end = await wait(handle)
            self.at_work.append((*begun[id(handle)], time.monotonic()))
            return end

        launcher.start, launcher.follow, launcher.wait = starting, following, waiting


def busy(spans: list[tuple[str, float, float]]) -> float:
    """The share of the time that the slots were in use, between their first and their last shards."""
    ordered = sorted(spans, key=lambda span: span[1])[SLOTS:-SLOTS]
    by_slot: Mapping[str, list[tuple[float, float]]] = defaultdict(list)
    for slot, start, end in ordered:
        by_slot[slot].append((start, end))
    used = sum(end - start for spans in by_slot.values() for start, end in spans)
    return used / sum(spans[-1][1] - spans[0][0] for spans in by_slot.values())


def measure(launcher: str, what: str, folder: Path) -> dict[str, float]:
    with started_api(folder / "server.log") as server:
        from prefect import flow

        from flows.execution import Execution
        from flows.fanout import FanOut
        from tasks.artifacts.store import Store
        from tests.toy_tasks import KINDS, SquaresParams

        [squares] = [kind for kind in KINDS if kind.name == "toy.squares"]
        slots, shards = (1, ALONE) if what == "alone" else (SLOTS, SHARDS)
        settings = {"device": "cpu", "slots": slots, "threads": 1}
        execution = toy_execution(**settings) if launcher == "docker" else Execution(**settings)
        specs = [squares.spec(SquaresParams(n=0), seed=seed) for seed in range(shards)]
        spans = Spans()

        @flow(name="bench")
        async def fan_out() -> float:
            async with FanOut(Store(folder / "store"), execution, ("stage",)) as fan:
                spans.watch(fan._launcher)
                started = time.monotonic()
                await fan.run("stage", specs)
                return time.monotonic() - started

        if server:
            server.wait()
        seconds = asyncio.run(fan_out())
    return {
        "first_word": statistics.median(spans.first_words),
        "leased": busy(spans.leased),
        "containers": busy(spans.at_work),
        "leases": len(spans.leased),
        "seconds": seconds,
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
