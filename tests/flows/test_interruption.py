"""Flows that are killed or cancelled: nothing stays behind, and nothing finished is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Cancelling
from prefect.workers.process import ProcessWorker

from flows.execution import Execution
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tests.flows.processes import labelled, wait_until
from tests.flows.toy_flow import SQUARES, toy
from tests.toy_tasks import SquaresParams

REPOSITORY = Path(__file__).parents[2]
POOL = "toy-pool"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def chunks_of(store: Path) -> int:
    return len(list(store.glob("shards/toy.squares/*/chunks/*.json")))


def parameters(store: Path, squares: list[SquaresParams]) -> dict[str, Any]:
    return {
        "store": str(store),
        "squares": [params.model_dump() for params in squares],
        "execution": {"device": "cpu", "slots": 2},
    }


def test_a_killed_flow_leaves_no_orphan_and_the_next_run_goes_on(tmp_path: Path) -> None:
    squares = [SquaresParams(n=6 + i, chunk_size=1, sleep_s=0.4) for i in range(2)]
    arguments = json.dumps(parameters(tmp_path, squares))
    flow = subprocess.Popen([sys.executable, "-m", "tests.flows.toy_flow", arguments], cwd=REPOSITORY)
    wait_until(lambda: chunks_of(tmp_path) >= 3, 60, "chunks are written")
    assert labelled(str(tmp_path))
    flow.kill()
    flow.wait()
    assert wait_until(lambda: not labelled(str(tmp_path)), 8, "the shards end") < 8
    left = chunks_of(tmp_path)

    assert asyncio.run(toy(str(tmp_path), squares, Execution(device="cpu", slots=2))) == {"numbers": 6 + 7}
    manifests = [Shard(Store(tmp_path), SQUARES.spec(p, seed=i).path).manifest for i, p in enumerate(squares)]
    assert sum(manifest.run["reused_chunks"] for manifest in manifests) == left


async def create_work_pool(name: str) -> None:
    pool = WorkPoolCreate(
        name=name, type=ProcessWorker.type, base_job_template=ProcessWorker.get_default_base_job_template()
    )
    async with get_client() as client:
        with contextlib.suppress(ObjectAlreadyExists):
            await client.create_work_pool(pool)


@pytest.fixture
def worker(prefect_server: str) -> Iterator[None]:
    """A process worker, as `python -m flows serve` starts it."""
    asyncio.run(create_work_pool(POOL))
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


async def start_deployment(values: dict[str, Any]) -> UUID:
    async with get_client() as client:
        flow_id = await client.create_flow(toy)
        deployment = await client.create_deployment(
            flow_id,
            name="toy",
            entrypoint="tests/flows/toy_flow.py:toy",
            work_pool_name=POOL,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(REPOSITORY)}}],
        )
        run = await client.create_flow_run_from_deployment(deployment, parameters=values)
        return run.id


async def state_of(flow_run: UUID) -> str:
    async with get_client() as client:
        return (await client.read_flow_run(flow_run)).state_name or ""


async def cancel(flow_run: UUID) -> None:
    async with get_client() as client:
        await client.set_flow_run_state(flow_run, Cancelling())


@pytest.mark.usefixtures("worker")
def test_cancelling_through_the_api_stops_the_shards(tmp_path: Path) -> None:
    squares = [SquaresParams(n=400 + i, chunk_size=1, sleep_s=0.5) for i in range(4)]
    flow_run = asyncio.run(start_deployment(parameters(tmp_path, squares)))
    wait_until(lambda: len(labelled(str(tmp_path))) == 2, 90, "two shards run")
    asyncio.run(cancel(flow_run))
    seconds = wait_until(lambda: not labelled(str(tmp_path)), 15, "the shards end")
    print(f"shards ended after {seconds:.1f} s")
    seconds = wait_until(lambda: asyncio.run(state_of(flow_run)) == "Cancelled", 15, "the run is cancelled")
    print(f"run cancelled after {seconds:.1f} s more")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_flow_stops_its_shards(tmp_path: Path, number: signal.Signals) -> None:
    arguments = json.dumps(parameters(tmp_path, [SquaresParams(n=400, chunk_size=1, sleep_s=0.5)]))
    command = [sys.executable, "-m", "tests.flows.toy_flow", arguments]
    flow = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    wait_until(lambda: chunks_of(tmp_path), 60, "chunks are written")
    flow.send_signal(number)
    assert flow.wait(20) != 0
    assert not labelled(str(tmp_path))
