"""The work pools of deploy/pools: what a server is to hold, and the changes that make it so.

Secrets are part of the process pool: each is an encrypted block on the server, and the pool's base job template says
which environment variable of a flow it becomes. A worker fills it in when it starts the flow's process, so the value
is in no deployment, no flow run and no log. In a cluster, Kubernetes keeps them.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from tasks.errors import BadInput

FOLDER = Path(__file__).parents[1] / "deploy" / "pools"
PROCESS_POOL = "tomograph-process"
KUBERNETES = "kubernetes"
SECRET_PREFIX = "tomograph-env-"


def work_pools(names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The work pools of these names, none meaning all: type, description, limit and, if not Prefect's, template.

    Raises:
        BadInput: there is none of that name.
    """
    pools = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
    for name in names:
        if name not in pools:
            raise BadInput("--pool", name, "there is no such work pool", f"choose from {', '.join(pools)}")
    return {name: pool for name, pool in pools.items() if name in names or not names}


async def apply(client: PrefectClient, name: str, pool: dict[str, Any], image: str) -> str:
    """Create or update a work pool where the server's differs, and say what was done.

    Raises:
        BadInput: the server has one of that name and another type.
    """
    fields = {
        "description": pool["description"],
        "concurrency_limit": pool["concurrency_limit"],
        "base_job_template": await _template(client, pool, image),
    }
    held = await _held(client, name)
    if held is None:
        await client.create_work_pool(WorkPoolCreate(name=name, type=pool["type"], **fields))
        return "created"
    if held.type != pool["type"]:
        remedy = f"delete it (prefect work-pool delete {name}), or rename its file in deploy/pools"
        raise BadInput("work pool", name, f"the server's is of type {held.type}, not {pool['type']}", remedy)
    changed = [field for field, value in fields.items() if getattr(held, field) != value]
    if changed:
        await client.update_work_pool(name, WorkPoolUpdate(**fields))
    return f"updated: {', '.join(changed)}" if changed else "unchanged"


async def _held(client: PrefectClient, name: str) -> WorkPool | None:
    try:
        return await client.read_work_pool(name)
    except ObjectNotFound:
        return None


async def _template(client: PrefectClient, pool: dict[str, Any], image: str) -> dict[str, Any]:
    """Base job template of a pool, with what is decided at deployment as defaults of its variables."""
    if pool["type"] == KUBERNETES:
        template = copy.deepcopy(pool["base_job_template"])
        template["variables"]["properties"]["image"]["default"] = image
        return template
    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["env"]["default"] = await _secret_references(client)
    return template


async def _secret_references(client: PrefectClient) -> dict[str, str]:
    """The environment variables that are secrets on the server, each as a template for its block."""
    blocks = await client.read_block_documents_by_type("secret", include_secrets=False)
    names = sorted(one.name for one in blocks if one.name and one.name.startswith(SECRET_PREFIX))
    return {_variable_of(name): f"{{{{ prefect.blocks.secret.{name} }}}}" for name in names}


def secret_values(names: Sequence[str], pools: Collection[str]) -> dict[str, str]:
    """The values of these variables, from this process's environment.

    Raises:
        BadInput: one is not set, is no variable, or the process pool is not among ``pools``.
    """
    for name in names:
        shown = name if re.fullmatch(r"[A-Za-z0-9_]{1,40}", name) else "..."  # it may be the secret itself
        if PROCESS_POOL not in pools:
            problem = f"secrets are for the work pool {PROCESS_POOL}"
            raise BadInput("--secret", shown, problem, "a cluster has them in its Secret tomograph-credentials")
        if not re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", name):
            problem = "this is no name of a variable; the value comes from the environment"
            raise BadInput("--secret", shown, problem, "write it like AWS_ACCESS_KEY_ID")
        if not os.environ.get(name):
            raise BadInput("--secret", shown, "this environment variable is not set", f"set {name} for this command")
    return {name: os.environ[name] for name in names}


async def apply_secret(client: PrefectClient, name: str, value: str) -> str:
    """Create or update a secret where the server's differs, and say what was done."""
    block = _block_of(name)
    try:  # not by Secret.load, which would turn a value that looks like JSON into what it says
        held = (await client.read_block_document_by_name(block, "secret")).data["value"]
    except ObjectNotFound:
        held = None
    if held == value:
        return "unchanged"
    await Secret(value=value).asave(block, overwrite=True, client=client)
    return "created" if held is None else "updated"


def _block_of(variable: str) -> str:
    """AWS_ACCESS_KEY_ID -> "tomograph-env-aws-access-key-id": Prefect wants no capitals in a block's name."""
    return SECRET_PREFIX + variable.lower().replace("_", "-")


def _variable_of(block: str) -> str:
    return block.removeprefix(SECRET_PREFIX).upper().replace("-", "_")
