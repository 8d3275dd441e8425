"""What a Prefect server keeps: no credentials of a location, whichever way it is given."""

from __future__ import annotations

import asyncio
import io
import os
import sqlite3
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from rich.console import Console

from flows.deploy import STORE_VARIABLE, deploy
from flows.pools import PROCESS_POOL
from tasks.errors import BadInput
from tests.flows.test_cli import run
from tests.places.spellings import SECRET, SPELLINGS


def kept() -> str:
    """Everything in the server's database."""
    database = Path(os.environ["PREFECT_HOME"]) / "prefect.db"
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return "\n".join(connection.iterdump())


def deployed(**options: object) -> None:
    asyncio.run(deploy(Console(file=io.StringIO()), [PROCESS_POOL], names=["local"], **options))


@pytest.mark.parametrize(
    "arguments",
    [
        ["patching", "--store", SPELLINGS[1]],
        ["patching", "--model.source", SPELLINGS[-3]],
        ["outliers", "--models", f'{{"source": "org/name", "adapter": "{SPELLINGS[2]}"}}'],
    ],
)
def test_a_refused_location_makes_no_flow_run(prefect_server: str, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "can't carry credentials" in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr + kept()


def test_a_deployment_refuses_them_in_a_runs_parameters(prefect_server: str) -> None:
    """As its form does: by the schema, before anything is stored."""

    async def submit() -> None:
        async with get_client() as client:
            for flow, parameters in (
                ("patching", {"store": SPELLINGS[1]}),
                ("outliers", {"models": [{"source": SPELLINGS[0]}]}),
            ):
                deployment = await client.read_deployment_by_name(f"{flow}/local")
                with pytest.raises(PrefectHTTPStatusError):
                    await client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    deployed()
    asyncio.run(submit())
    assert SECRET not in kept()


def test_a_deployment_is_not_made_with_them(prefect_server: str) -> None:
    async def remember() -> None:
        async with get_client() as client:
            await client.delete_variable_by_name(STORE_VARIABLE)
            from prefect.client.schemas.actions import VariableCreate

            await client.create_variable(VariableCreate(name=STORE_VARIABLE, value=SPELLINGS[0]))

    async def forget() -> None:
        async with get_client() as client:
            await client.delete_variable_by_name(STORE_VARIABLE)

    for spelling in SPELLINGS:
        with pytest.raises(BadInput, match="can't carry credentials") as refused:
            deployed(store=spelling)
        assert SECRET not in str(refused.value)
    assert SECRET not in kept()
    deployed()
    asyncio.run(remember())
    try:
        with pytest.raises(BadInput, match=r"parameters of .*can't carry credentials") as refused:
            deployed()
        assert SECRET not in str(refused.value)
    finally:
        asyncio.run(forget())
        deployed()
