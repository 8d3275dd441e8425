"""Cost of the fan-out: around each shard, and of a run that finds everything finished."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flows.server import NO_TELEMETRY, QUIET_CONSOLE, started_api
from tests.benchmarks.rows import row

FINISHED_SHARDS = 1000
EMPTY_SHARDS = 200
REAL_SHARDS = 12

MAX_SECONDS_TO_FIND = 10.0
MAX_OVERHEAD_MS = 50.0


def run() -> list[dict[str, Any]]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            **NO_TELEMETRY,
            **QUIET_CONSOLE,
            "PREFECT_HOME": str(Path(folder) / "prefect"),
            "TOMOGRAPH_RUNTIME_DIR": str(Path(folder) / "runtime"),
            "TOMOGRAPH_PLUGINS": "tests.toy_tasks",
        }

        def in_a_fresh_process(measure: str) -> tuple[float, float]:
            """What the measurement says, and the seconds that the whole process took."""
            command = [sys.executable, "-m", "tests.benchmarks.bench_fanout", measure, str(store)]
            started = time.monotonic()
            output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            return float(output.splitlines()[-1]), time.monotonic() - started

        real, _ = in_a_fresh_process("real")  # first, since it makes Prefect's database
        empty, _ = in_a_fresh_process("empty")
        write_finished(store)
        found, whole = in_a_fresh_process("find")
    return [
        row("fan-out: overhead per shard, around its process", 1000 * empty, "ms", at_most=MAX_OVERHEAD_MS),
        row("fan-out: overhead per shard found finished", 1000 * found, "ms", at_most=MAX_OVERHEAD_MS),
        row(f"fan-out: a run that finds {FINISHED_SHARDS:,} finished shards", whole, "s", at_most=MAX_SECONDS_TO_FIND),
        row("fan-out: one no-op shard after the other, process and all", 1000 * real, "ms"),
    ]


def finished_specs() -> list[Any]:
    from tests.toy_tasks import KINDS, SquaresParams

    [squares] = [kind for kind in KINDS if kind.name == "toy.squares"]
    return [squares.spec(SquaresParams(n=1), seed=seed) for seed in range(FINISHED_SHARDS)]


def write_finished(store: Path) -> None:
    """Finished shards as a run leaves them: a manifest, and the object that it names."""
    from tasks.artifacts.manifest import Manifest, Output, write_manifest
    from tasks.artifacts.store import Store

    target = Store(store)

    def write(spec: Any) -> None:
        ref = target.at(spec.path).put_object("summary", ".json", [b"{}"])
        write_manifest(target, Manifest.of(spec, {"summary": Output(kind="json", objects=[ref])}, {}, {}))

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(write, finished_specs()))


def measure(what: str, store: Path) -> float:
    """Seconds for each shard, in this process, on a server of its own."""
    with started_api(store.parent / "server.log") as server:
        from prefect import flow

        from flows.execution import Execution
        from flows.fanout import FanOut
        from flows.launchers.process import ProcessLauncher
        from tasks.artifacts.manifest import Manifest, write_manifest
        from tasks.artifacts.store import Store
        from tests.toy_tasks import KINDS, CheckParams, SquaresParams

        kinds = {kind.name: kind for kind in KINDS}
        target = Store(store)

        class NoWork(ProcessLauncher):
            """Starts a process that does nothing, in place of the shard."""

            forks = False

            def program(self, environment: str) -> tuple[str, ...]:
                return ("true",)

        class WithoutWork(Execution):
            def make_launcher(self) -> NoWork:
                return NoWork()

        if what == "find":
            execution, specs = Execution(device="cpu"), finished_specs()
        elif what == "real":
            execution = Execution(device="cpu", slots=1, threads=1)
            specs = [kinds["toy.squares"].spec(SquaresParams(n=0), seed=-1 - i) for i in range(REAL_SHARDS)]
        else:  # of a kind that always runs, so that its manifest is there and it is started all the same
            execution = WithoutWork(device="cpu", slots=1, threads=1)
            specs = [kinds["toy.check"].spec(CheckParams(path=str(i))) for i in range(EMPTY_SHARDS)]
            for spec in specs:
                write_manifest(target, Manifest.of(spec, {}, {}, {}))

        @flow(name="bench")
        async def fan_out() -> float:
            async with FanOut(target, execution, ("stage",)) as fan:
                started = time.monotonic()
                await fan.run("stage", specs)
                return (time.monotonic() - started) / len(specs)

        if server:
            server.wait()
        return asyncio.run(fan_out())


if __name__ == "__main__":
    print(measure(sys.argv[1], Path(sys.argv[2])))
