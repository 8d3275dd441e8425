"""``python -m flows deploy``: what the product needs on a Prefect server, made or brought up to date.

These are the work pools, the variable that names the store, secrets and the deployments of prefect.yaml. A second run
changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from rich.console import Console

from flows import deployments, pools
from flows.launchers.images import variable, version
from flows.server import ServerFailed
from tasks.errors import BadInput
from tasks.places.credentials import hidden
from tasks.places.opening import open_location

REPOSITORY = Path(__file__).parents[1]
STORE_VARIABLE = "tomograph_store"
DEFAULT_STORE = "runs/store"


async def deploy(
    console: Console,
    pool_names: Sequence[str] = (),
    *,
    image: str | None = None,
    store: str | None = None,
    secrets: Sequence[str] = (),
    names: Sequence[str] = (),
    prune: bool = False,
) -> None:
    """Bring the server up to date and say what was done.

    Args:
        console: Where each thing is said in a line.
        pool_names: Only these work pools of deploy/pools, and the deployments on them; none means all.
        image: Image of the flows in a cluster. None is TOMOGRAPH_FLOWS_IMAGE, else what `make images` builds.
        store: Where deployments keep results. None leaves what the server has, at first a folder of the checkout.
        secrets: Environment variables that flows of the process pool get. The server keeps their values, encrypted.
        names: Only deployments of these names; none means all. Others on the server are left alone then.
        prune: Delete deployments of these pools that prefect.yaml doesn't have.

    Raises:
        BadInput: an argument, or what prefect.yaml needs.
        ServerFailed: the server doesn't answer, or refuses something.
    """
    chosen = pools.work_pools(pool_names)
    wanted = _Wanted(
        pools=chosen,
        image=_checked_image(image or os.environ.get(variable("flows")) or f"tomograph-flows:{version()}"),
        store=None if store is None else _checked_store(store),
        secrets=pools.secret_values(secrets, chosen),
        deployments=deployments.chosen(chosen, names),
        all_of_them=not names,
        prune=prune,
    )
    os.environ["PWD"] = str(REPOSITORY)  # where prefect.yaml says that the code is
    async with get_client() as client:
        url = str(client.api_url).rstrip("/")
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            if error := await client.api_healthcheck():
                raise ServerFailed(f"the Prefect server at {url} does not answer: {_detail(error)}")
        try:
            await _deploy(console, client, wanted)
        except httpx.HTTPError as error:
            raise ServerFailed(f"the Prefect server at {url}: {_detail(error)}") from error


@dataclass(frozen=True)
class _Wanted:
    pools: dict[str, dict[str, Any]]
    image: str
    store: str | None
    secrets: dict[str, str]
    deployments: list[dict[str, Any]]
    all_of_them: bool
    prune: bool


async def _deploy(console: Console, client: PrefectClient, wanted: _Wanted) -> None:
    def say(kind: str, name: str, done: str) -> None:
        console.print(f"{kind:<12}{name:<34}{done}", markup=False, highlight=False, soft_wrap=True)

    for name, value in wanted.secrets.items():
        say("secret", name, await pools.apply_secret(client, name, value))
    store, done = await _apply_store(client, wanted.store)
    say("variable", STORE_VARIABLE, done)
    for name, pool in wanted.pools.items():
        say("work pool", name, await pools.apply(client, name, pool, wanted.image))
    known = []
    for one in await deployments.wanted(client, wanted.deployments):
        deployment_id, done = await deployments.apply(client, one)
        known.append(deployment_id)
        say("deployment", one.full_name, done)
    stale = await deployments.stale(client, wanted.pools, known) if wanted.all_of_them else {}
    for name, deployment_id in stale.items():
        if wanted.prune:
            await client.delete_deployment(deployment_id)
        say("deployment", name, "deleted" if wanted.prune else "stale: not in prefect.yaml; --prune deletes it")
    if "://" not in store and any(pool["type"] == pools.KUBERNETES for pool in wanted.pools.values()):
        problem = f"{STORE_VARIABLE} is {store}, a folder, which pods of a cluster don't share"
        console.print(f"{problem}; set it with --store s3://bucket/prefix", style="yellow", soft_wrap=True)


async def _apply_store(client: PrefectClient, store: str | None) -> tuple[str, str]:
    """The default store of deployments, and what was done."""
    held = await client.read_variable_by_name(STORE_VARIABLE)
    if held is None:
        value = store or DEFAULT_STORE
        await client.create_variable(VariableCreate(name=STORE_VARIABLE, value=value, tags=[deployments.TAG]))
        return value, f"created: {value}"
    if store is None or held.value == store:
        return str(held.value), f"unchanged: {hidden(held.value)}"
    await client.update_variable(VariableUpdate(name=STORE_VARIABLE, value=store))
    return store, f"updated: {store}"


def _checked_image(image: str) -> str:
    if not re.fullmatch(r"[a-z0-9][\w.:/-]*(@sha256:[0-9a-f]{64})?", image):
        raise BadInput("--image", image, "this is no reference of an image", "write name:tag or name@sha256:...")
    return image


def _checked_store(store: str) -> str:
    if not store.strip():
        raise BadInput("--store", store, "is empty", "give a folder or a URL such as s3://bucket/prefix")
    open_location(store, "--store", "s3://bucket/prefix")
    return store


def _detail(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, httpx.HTTPStatusError):
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            return "access is refused; set PREFECT_API_AUTH_STRING to its user:password"
        try:
            return str(error.response.json()["detail"])
        except (ValueError, KeyError, TypeError):
            pass
    return str(error).partition("\n")[0] or type(error).__name__
