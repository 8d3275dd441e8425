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

from flows.cli import parse
from flows.outliers import outliers
from flows.outliers_plan import OutlierSettings, examinations
from flows.serve import create_work_pool, work_pools

REPOSITORY = Path(__file__).parents[2]
SWEEPS = sorted((REPOSITORY / "deploy" / "sweeps").glob("*.yaml"))
FIRST_PARAMETERS = {
    "patching/local": ["model", "saes", "scenario"],
    "outliers/local": ["models", "text", "sites"],
    "outliers/moe-sweep": ["models", "text", "sites"],
}
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


@pytest.mark.parametrize("deployment", CONTENT["deployments"], ids=lambda one: f"{one['entrypoint']}/{one['name']}")
def test_each_deployment_says_what_it_is(deployment: dict[str, Any]) -> None:
    path, name = deployment["entrypoint"].split(":")
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    assert isinstance(flow, Flow)
    assert deployment["description"].strip()
    assert deployment["tags"]
    assert deployment["concurrency_limit"]["limit"] >= 1
    assert all("active" in schedule for schedule in deployment.get("schedules", []))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_is_a_valid_set_of_parameters(path: Path) -> None:
    parameters = parse(outliers, ["--config", str(path)], "flows")
    given = yaml.safe_load(path.read_text())
    settings = OutlierSettings.model_validate({name: parameters[name] for name in OutlierSettings.model_fields})
    assert [model.source for model in settings.models] == [model["source"] for model in given["models"]]
    assert len({one.folder for one in examinations(settings)}) == len(given["models"])


def test_the_deployed_sweep_is_that_of_its_file() -> None:
    [deployment] = [one for one in CONTENT["deployments"] if one["name"] == "moe-sweep"]
    assert deployment["parameters"] == yaml.safe_load((REPOSITORY / "deploy/sweeps/moe.yaml").read_text())


@pytest.fixture(scope="module")
def deployments(prefect_server: str) -> dict[str, DeploymentResponse]:
    """All deployments by name, as `prefect deploy --all` makes them."""
    for pool in work_pools():
        asyncio.run(create_work_pool(pool))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    async def read() -> dict[str, DeploymentResponse]:
        async with get_client() as client:
            return {name: await client.read_deployment_by_name(name) for name in FIRST_PARAMETERS}

    return asyncio.run(read())


@pytest.mark.parametrize("name", FIRST_PARAMETERS)
def test_the_form_has_every_parameter_with_a_description(deployments: dict[str, DeploymentResponse], name: str) -> None:
    deployed = deployments[name]
    properties = deployed.parameter_openapi_schema["properties"]
    assert sorted(properties, key=lambda name: properties[name]["position"])[:3] == FIRST_PARAMETERS[name]
    definitions = deployed.parameter_openapi_schema["definitions"]
    for name, field in properties.items():  # a description that repeats its model's is left to the model
        model = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
        assert field.get("description") or model.get("description"), name
    assert [schedule.active for schedule in deployed.schedules] == [False]
    assert deployed.global_concurrency_limit is not None


def test_the_form_of_a_model_has_its_source_first(deployments: dict[str, DeploymentResponse]) -> None:
    schema = deployments["outliers/local"].parameter_openapi_schema
    assert schema["properties"]["models"]["items"] == {"$ref": "#/definitions/SweepModel"}
    fields = schema["definitions"]["SweepModel"]["properties"]
    assert next(iter(fields)) == "source"
    assert all(field["description"] for field in fields.values())


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("patching/local", {"trials": {"trials_per_cell": 0}, "seed": 1}, "0 is less than the minimum of 1"),
        ("outliers/local", {"models": [{"source": "a", "gpus": 0}]}, "0 is less than the minimum of 1"),
        ("outliers/moe-sweep", {"models": []}, "[] should be non-empty"),
    ],
)
def test_a_bad_parameter_is_refused_before_anything_starts(
    deployments: dict[str, DeploymentResponse], name: str, parameters: dict[str, Any], says: str
) -> None:
    async def start() -> None:
        async with get_client() as client:
            await client.create_flow_run_from_deployment(deployments[name].id, parameters=parameters)

    with pytest.raises(PrefectHTTPStatusError) as refused:
        asyncio.run(start())
    assert says in str(refused.value)
