"""prefect.yaml: Prefect drops misspelt keys without a word, so they are refused here; and it really deploys."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.cli.deploy._models import ConcurrencyLimitSpec, DeploymentConfig, PrefectYamlModel, WorkPoolConfig
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import PrefectHTTPStatusError
from pydantic import BaseModel

from flows.serve import create_work_pool, work_pools

REPOSITORY = Path(__file__).parents[2]
CONTENT = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())


def unknown_keys(content: dict[str, Any]) -> list[str]:
    """Keys that Prefect would ignore."""

    def beyond(where: str, given: dict[str, Any], model: type[BaseModel], *more: str) -> list[str]:
        known = {field.alias or name for name, field in model.model_fields.items()} | set(more)
        return [f"{where}{key}" for key in given if key not in known]

    found = beyond("", content, PrefectYamlModel, "definitions")
    for deployment in content["deployments"]:
        where = f"{deployment.get('name')}: "
        found += beyond(where, deployment, DeploymentConfig)
        found += beyond(f"{where}work_pool.", deployment.get("work_pool", {}), WorkPoolConfig)
        if isinstance(limit := deployment.get("concurrency_limit"), dict):
            found += beyond(f"{where}concurrency_limit.", limit, ConcurrencyLimitSpec)
    return found


def test_no_key_is_ignored() -> None:
    assert unknown_keys(CONTENT) == []


def test_misspelt_keys_are_found() -> None:
    deployment = {"name": "d", "concurency_limit": 1, "work_pool": {"name": "p", "job_variable": {}}}
    content = {"deployments": [deployment | {"concurrency_limit": {"limits": 1}}], "pul": []}
    assert unknown_keys(content) == [
        "pul",
        "d: concurency_limit",
        "d: work_pool.job_variable",
        "d: concurrency_limit.limits",
    ]


@pytest.mark.parametrize("deployment", CONTENT["deployments"], ids=lambda deployment: deployment["entrypoint"])
def test_each_deployment_says_what_it_is(deployment: dict[str, Any]) -> None:
    path, name = deployment["entrypoint"].split(":")
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    assert isinstance(flow, Flow)
    assert deployment["description"].strip()
    assert deployment["tags"]
    assert deployment["concurrency_limit"]["limit"] >= 1
    assert all("active" in schedule for schedule in deployment.get("schedules", []))


@pytest.fixture(scope="module")
def deployed(prefect_server: str) -> DeploymentResponse:
    """The patching deployment, as `prefect deploy --all` makes it."""
    for pool in work_pools():
        asyncio.run(create_work_pool(pool))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    async def read() -> DeploymentResponse:
        async with get_client() as client:
            return await client.read_deployment_by_name("patching/local")

    return asyncio.run(read())


def test_the_form_has_every_parameter_with_a_description(deployed: DeploymentResponse) -> None:
    properties = deployed.parameter_openapi_schema["properties"]
    assert sorted(properties, key=lambda name: properties[name]["position"])[:3] == ["model", "saes", "scenario"]
    definitions = deployed.parameter_openapi_schema["definitions"]
    for name, field in properties.items():  # a description that repeats its model's is left to the model
        model = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
        assert field.get("description") or model.get("description"), name
    assert [schedule.active for schedule in deployed.schedules] == [False]
    assert deployed.global_concurrency_limit is not None


def test_a_bad_parameter_is_refused_before_anything_starts(deployed: DeploymentResponse) -> None:
    async def start() -> None:
        async with get_client() as client:
            await client.create_flow_run_from_deployment(
                deployed.id, parameters={"trials": {"trials_per_cell": 0}, "seed": 1}
            )

    with pytest.raises(PrefectHTTPStatusError, match="trials_per_cell") as refused:
        asyncio.run(start())
    assert "0 is less than the minimum of 1" in str(refused.value)
