"""Flow runs of killed processes: closed in Prefect by the next that looks, and nothing is left in the folder."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.states import Completed, Running

from flows.dead_runs import MESSAGE, close_dead_runs, dead_runs, recorded
from flows.holders import holder
from tests.flows.toy_flow import toy

RECORD = """
import sys, time
from flows.dead_runs import recorded
from flows.holders import log_file
log_file().write_text("a server's log")
with recorded(sys.argv[1]), recorded(sys.argv[2]):
    print("recorded", flush=True)
    time.sleep(600)
"""


async def new_runs(count: int) -> list[UUID]:
    async with get_client() as client:
        parameters = {"store": "s", "squares": [], "execution": {}}
        return [(await client.create_flow_run(toy, parameters=parameters, state=Running())).id for _ in range(count)]


async def states(runs: list[UUID]) -> list[tuple[str, str | None]]:
    async with get_client() as client:
        found = [(await client.read_flow_run(run)).state for run in runs]
    return [(state.name, state.message) for state in found if state]


async def finish(run: UUID) -> None:
    async with get_client() as client:
        await client.set_flow_run_state(run, Completed(), force=True)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix)


def test_runs_of_a_killed_process_are_closed_and_those_of_a_living_one_are_not(
    prefect_server: str, runtime_folder: Path
) -> None:
    killed, over, living = runs = asyncio.run(new_runs(3))
    process = subprocess.Popen(
        [sys.executable, "-c", RECORD, str(killed), str(over)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "recorded\n"
    with recorded(str(living)):
        assert dead_runs() == []
        process.kill()
        process.wait()
        assert dead_runs() == sorted([str(killed), str(over)])
        asyncio.run(finish(over))
        assert len(asyncio.run(close_dead_runs())) == 1
        assert asyncio.run(states(runs)) == [("Crashed", MESSAGE), ("Completed", None), ("Running", None)]
        assert files(runtime_folder) == [f"holders/{holder()}.lock", f"runs/{living}.json"]
    assert files(runtime_folder) == [f"holders/{holder()}.lock"]
    assert asyncio.run(close_dead_runs()) == []


def test_a_run_that_this_server_does_not_know_stays_on_record(prefect_server: str, runtime_folder: Path) -> None:
    record = runtime_folder / "runs" / "00000000-0000-0000-0000-000000000001.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"holder": "1-nobody"}')
    assert asyncio.run(close_dead_runs()) == []
    assert record.exists()
