"""The deployments of prefect.yaml: what a server is to hold, and the changes that make it so."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema
from prefect.utilities.templating import PlaceholderType, apply_values, find_placeholders, resolve_variables

from flows.launchers.images import version
from tasks.errors import BadInput
from tasks.places.credentials import hidden
from tasks.places.location import PROBLEM, REMEDY

PROJECT_FILE = Path(__file__).parents[1] / "prefect.yaml"
TAG = "tomograph"
PAGE = 200


@dataclass(frozen=True)
class Deployment:
    """One deployment as the server is to hold it."""

    flow: str
    name: str
    fields: dict[str, Any]
    """What Prefect's client takes to create or update it, but for the schedules."""
    schedules: list[DeploymentScheduleCreate]

    @property
    def full_name(self) -> str:
        return f"{self.flow}/{self.name}"


def content() -> dict[str, Any]:
    return yaml.safe_load(PROJECT_FILE.read_text())


def flow_of(entrypoint: str) -> Flow[..., Any]:
    """ "flows/patching.py:patching" as an object."""
    path, _, name = entrypoint.partition(":")
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


def chosen(pools: Collection[str], names: Collection[str] = ()) -> list[dict[str, Any]]:
    """What prefect.yaml says of the deployments on these work pools, of these names ("gpu-host") or (none) of all.

    Raises:
        BadInput: there is none of a name.
    """
    project = content()
    found = [{"pull": project["pull"], **one} for one in project["deployments"] if one["work_pool"]["name"] in pools]
    there = {one["name"] for one in found}
    if unknown := sorted(set(names) - there):
        problem = f"no deployment on {', '.join(sorted(pools))} has this name"
        raise BadInput("--name", unknown[0], problem, f"choose from {', '.join(sorted(there))}")
    return [one for one in found if one["name"] in names or not names]


async def wanted(client: PrefectClient, given: list[dict[str, Any]]) -> list[Deployment]:
    """These deployments of prefect.yaml, templates filled in.

    Raises:
        BadInput: a template names a variable that is not set. Prefect itself would put nothing in its place.
    """
    await _require_variables(client, given)
    filled = apply_values(await resolve_variables(given, client=client), {}, remove_notset=False)
    if missing := find_placeholders(filled):
        names = sorted(one.name.removeprefix("$") for one in missing)
        raise BadInput("prefect.yaml", names, "these environment variables are not set", "set them")
    return [_deployment(one) for one in filled]


async def _require_variables(client: PrefectClient, given: list[dict[str, Any]]) -> None:
    for one in find_placeholders(given):
        name = one.name.rpartition(".")[2]
        if one.type is PlaceholderType.VARIABLE and await client.read_variable_by_name(name) is None:
            raise BadInput("prefect.yaml", name, "Prefect has no such variable", f"prefect variable set {name} VALUE")


def _deployment(given: dict[str, Any]) -> Deployment:
    flow = flow_of(given["entrypoint"])
    parameters = [given.get("parameters", {}), *(one.get("parameters", {}) for one in given.get("schedules", []))]
    if hidden(parameters) != parameters:
        field = f"parameters of {flow.name}/{given['name']}"
        raise BadInput(field, hidden(parameters), PROBLEM, f"{REMEDY}; a store is set by deploy --store URL")
    pool, limit = given["work_pool"], given["concurrency_limit"]
    return Deployment(
        flow=flow.name,
        name=given["name"],
        fields={
            "version": version(),
            "description": given["description"],
            "tags": given["tags"],
            "parameters": given.get("parameters", {}),
            "job_variables": pool.get("job_variables", {}),
            "entrypoint": given["entrypoint"],
            "pull_steps": given["pull"],
            "work_pool_name": pool["name"],
            "work_queue_name": pool["work_queue_name"],
            "concurrency_limit": limit["limit"],
            "concurrency_options": ConcurrencyOptions(collision_strategy=limit["collision_strategy"]),
            "enforce_parameter_schema": True,
            "parameter_openapi_schema": parameter_schema(flow).model_dump(exclude_unset=True),
        },
        schedules=[_schedule(**one) for one in given.get("schedules", [])],
    )


def _schedule(
    slug: str, active: bool, parameters: dict[str, Any] | None = None, **cron: Any
) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(
        slug=slug, active=active, parameters=parameters or {}, schedule=CronSchedule(**cron)
    )


async def apply(client: PrefectClient, deployment: Deployment) -> tuple[UUID, str]:
    """Create or update it where the server's differs. Returns its id and what was done.

    Schedules that somebody switched on, off or added on the server stay as they are.
    """
    try:
        held = await client.read_deployment_by_name(deployment.full_name)
    except ObjectNotFound:
        flow_id = await client.create_flow_from_name(deployment.flow)
        created = await client.create_deployment(
            flow_id, deployment.name, schedules=deployment.schedules, **deployment.fields
        )
        return created, "created"
    changed = _changed(held, deployment.fields)
    if changed:
        await client.update_deployment(held.id, DeploymentUpdate(**deployment.fields))
    changed += await _apply_schedules(client, held, deployment.schedules)
    return held.id, f"updated: {', '.join(changed)}" if changed else "unchanged"


def _changed(held: DeploymentResponse, fields: dict[str, Any]) -> list[str]:
    limit = held.global_concurrency_limit
    server = {name: getattr(held, name) for name in fields if name != "concurrency_limit"}
    server["concurrency_limit"] = limit.limit if limit else None
    return [name for name, value in fields.items() if server[name] != value]


async def _apply_schedules(
    client: PrefectClient, held: DeploymentResponse, schedules: Iterable[DeploymentScheduleCreate]
) -> list[str]:
    """Returns what was changed."""
    changed = []
    by_slug = {schedule.slug: schedule for schedule in held.schedules}
    for schedule in schedules:
        same = by_slug.get(schedule.slug)
        if same is None:
            await client.create_deployment_schedules(held.id, [schedule])
        elif same.schedule != schedule.schedule:
            await client.update_deployment_schedule(held.id, same.id, schedule=schedule.schedule)
        else:
            continue
        changed.append(f"schedule {schedule.slug}")
    return changed


async def stale(client: PrefectClient, pools: Collection[str], known: Collection[UUID]) -> dict[str, UUID]:
    """Deployments of these work pools that carry the product's tag, but are not among the known ones, by name."""
    found: dict[str, UUID] = {}
    while page := await client.read_deployments(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=sorted(pools))),
        deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])),
        limit=PAGE,
        offset=len(found),
    ):
        for one in page:
            found[f"{(await client.read_flow(one.flow_id)).name}/{one.name}"] = one.id
    return {name: id for name, id in found.items() if id not in known}
