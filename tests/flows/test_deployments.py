"""prefect.yaml: Prefect drops misspelt keys without a word, so they are refused here; and what its forms show."""

from __future__ import annotations

import asyncio
import importlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.cli.deploy._models import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import PrefectHTTPStatusError
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from prefect.workers.process import ProcessWorker
from pydantic import BaseModel
from rich.console import Console

from flows.__main__ import FLOWS
from flows.cli import parse
from flows.deploy import deploy
from flows.deployments import content, flow_of
from flows.outliers import outliers
from flows.outliers_plan import OutlierSettings, examinations
from flows.pools import work_pools

REPOSITORY = Path(__file__).parents[2]
SWEEPS = sorted((REPOSITORY / "deploy" / "sweeps").glob("*.yaml"))
CONTENT = content()
DEPLOYMENTS = {f"{flow_of(one['entrypoint']).name}/{one['name']}": one for one in CONTENT["deployments"]}
VARIABLES = {
    name: (pool.get("base_job_template") or ProcessWorker.get_default_base_job_template())["variables"]
    for name, pool in work_pools().items()
}
FIRST_PARAMETERS = {"patching": ["model", "saes", "scenario"], "outliers": ["models", "text", "sites"]}

each_deployment = pytest.mark.parametrize("name", DEPLOYMENTS)


def unknown_keys(content: dict[str, Any]) -> list[str]:
    """Keys that Prefect would ignore, or only miss when a run starts."""

    def beyond(where: str, given: Iterable[str], known: Iterable[str]) -> list[str]:
        return [f"{where}{key}" for key in given if key not in set(known)]

    found = beyond("", content, [*fields(PrefectYamlModel), "definitions"])
    found += [f"pull: {step}" for step in steps(content.get("pull")) if not importable(step)]
    for deployment in content["deployments"]:
        where = f"{deployment.get('name')}: "
        pool = deployment.get("work_pool", {})
        job_variables = VARIABLES.get(pool.get("name"), {"properties": {}})["properties"]
        found += beyond(where, deployment, fields(DeploymentConfig))
        found += beyond(f"{where}work_pool.", pool, fields(WorkPoolConfig))
        found += beyond(f"{where}job_variables.", pool.get("job_variables", {}), job_variables)
        found += [f"{where}pull: {step}" for step in steps(deployment.get("pull")) if not importable(step)]
        if isinstance(limit := deployment.get("concurrency_limit"), dict):
            found += beyond(f"{where}concurrency_limit.", limit, fields(ConcurrencyLimitSpec))
        for schedule in deployment.get("schedules", []):
            found += beyond(f"{where}schedules.", schedule, fields(RawScheduleConfig))
        if "entrypoint" in deployment:
            parameters = parameter_schema(flow_of(deployment["entrypoint"])).properties
            found += beyond(f"{where}parameters.", deployment.get("parameters", {}), parameters)
    return found


def fields(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def steps(pull: list[dict[str, Any]] | None) -> list[str]:
    return [name for step in pull or [] for name in step]


def importable(step: str) -> bool:
    module, _, name = step.rpartition(".")
    return callable(getattr(importlib.import_module(module), name, None))


def test_no_key_is_ignored() -> None:
    assert unknown_keys(CONTENT) == []


def test_misspelt_keys_are_found() -> None:
    deployment = {
        "name": "d",
        "entrypoint": "flows/outliers.py:outliers",
        "concurency_limit": 1,
        "concurrency_limit": {"limits": 1},
        "work_pool": {"name": "tomograph-kubernetes", "job_variable": {}, "job_variables": {"namespaces": "a"}},
        "pull": [{"prefect.deployments.steps.set_workingdirectory": {}}],
        "schedules": [{"cron": "0 3 * * 1", "timezon": "UTC"}],
        "parameters": {"modells": []},
    }
    assert unknown_keys({"deployments": [deployment], "pul": []}) == [
        "pul",
        "d: concurency_limit",
        "d: work_pool.job_variable",
        "d: job_variables.namespaces",
        "d: pull: prefect.deployments.steps.set_workingdirectory",
        "d: concurrency_limit.limits",
        "d: schedules.timezon",
        "d: parameters.modells",
    ]


def test_no_two_deployments_have_one_name() -> None:
    assert len(DEPLOYMENTS) == len(CONTENT["deployments"])


@pytest.mark.parametrize("flow", FLOWS)
def test_every_flow_has_a_deployment_on_every_pool(flow: str) -> None:
    pools = {one["work_pool"]["name"] for name, one in DEPLOYMENTS.items() if name.startswith(f"{flow}/")}
    assert pools == set(work_pools())


@each_deployment
def test_each_deployment_says_what_it_is(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    assert name.startswith(tuple(f"{flow}/" for flow in FLOWS))
    assert deployment["description"].startswith("**")
    assert set(deployment["tags"]) > {"tomograph"}
    assert deployment["concurrency_limit"]["limit"] >= 1
    assert ConcurrencyLimitStrategy(deployment["concurrency_limit"]["collision_strategy"])


@each_deployment
def test_schedules_are_valid_and_off(name: str) -> None:
    schedules = DEPLOYMENTS[name]["schedules"]
    assert schedules
    assert len({schedule["slug"] for schedule in schedules}) == len(schedules)
    for schedule in schedules:
        assert schedule["active"] is False
        assert CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])


@each_deployment
def test_parameters_are_the_flows(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    flow = flow_of(deployment["entrypoint"])
    assert validate(deployment["parameters"], parameter_schema(flow).model_dump(exclude_unset=True)) == []
    flow.validate_parameters(deployment["parameters"])


@each_deployment
def test_job_variables_are_the_pools(name: str) -> None:
    pool = DEPLOYMENTS[name]["work_pool"]
    assert validate(pool.get("job_variables", {}), VARIABLES[pool["name"]]) == []


@each_deployment
def test_shards_run_where_the_pool_can_run_them(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    launcher = deployment["parameters"]["execution"]["launcher"]
    if deployment["work_pool"]["name"] == "tomograph-kubernetes":
        assert launcher == "kubernetes"
        assert deployment["pull"] == [{"prefect.deployments.steps.set_working_directory": {"directory": "/app"}}]
    else:
        assert launcher in ("process", "docker")
        assert "pull" not in deployment


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_is_a_valid_set_of_parameters(path: Path) -> None:
    parameters = parse(outliers, ["--config", str(path)], "flows")
    given = yaml.safe_load(path.read_text())
    settings = OutlierSettings.model_validate({name: parameters[name] for name in OutlierSettings.model_fields})
    assert [model.source for model in settings.models] == [model["source"] for model in given["models"]]
    assert len({one.folder for one in examinations(settings)}) == len(given["models"])


@pytest.mark.parametrize("name", ["outliers/moe-sweep", "outliers/moe-sweep-cluster"])
def test_a_deployed_sweep_is_that_of_its_file(name: str) -> None:
    parameters = dict(DEPLOYMENTS[name]["parameters"])
    assert {parameters.pop("store"), parameters.pop("execution")["launcher"]} <= {
        "{{ prefect.variables.tomograph_store }}",
        "docker",
        "kubernetes",
    }
    assert parameters == yaml.safe_load((REPOSITORY / "deploy/sweeps/moe.yaml").read_text())


@pytest.fixture(scope="module")
def deployments(prefect_server: str) -> dict[str, DeploymentResponse]:
    """All deployments by name."""
    asyncio.run(deploy(Console(file=io.StringIO()), store="s3://bucket/studies"))

    async def read() -> dict[str, DeploymentResponse]:
        async with get_client() as client:
            return {name: await client.read_deployment_by_name(name) for name in DEPLOYMENTS}

    return asyncio.run(read())


@each_deployment
def test_the_form_has_every_parameter_with_a_description(deployments: dict[str, DeploymentResponse], name: str) -> None:
    deployed = deployments[name]
    properties = deployed.parameter_openapi_schema["properties"]
    first = sorted(properties, key=lambda name: properties[name]["position"])[:3]
    assert first == FIRST_PARAMETERS[name.partition("/")[0]]
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


def run_of(deployment: DeploymentResponse, parameters: dict[str, Any]) -> FlowRun:
    async def start() -> FlowRun:
        async with get_client() as client:
            return await client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    return asyncio.run(start())


@pytest.mark.parametrize(
    ("name", "launcher", "pool"),
    [
        ("patching/local", "process", "tomograph-process"),
        ("patching/gpu-host", "docker", "tomograph-process"),
        ("patching/cluster", "kubernetes", "tomograph-kubernetes"),
    ],
)
def test_a_run_has_the_deployments_parameters_and_its_own(
    deployments: dict[str, DeploymentResponse], name: str, launcher: str, pool: str
) -> None:
    run = run_of(deployments[name], {"seed": 3, "trials": {"trials_per_cell": 7}})
    assert run.state.is_scheduled()
    assert run.work_pool_name == pool
    assert run.parameters == {
        "store": "s3://bucket/studies",
        "execution": DEPLOYMENTS[name]["parameters"]["execution"],
        "seed": 3,
        "trials": {"trials_per_cell": 7},
    }
    parameters = flow_of(DEPLOYMENTS[name]["entrypoint"]).validate_parameters(run.parameters)
    assert parameters["execution"].launcher == launcher
    assert parameters["trials"].trials_per_cell == 7


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("patching/local", {"trials": {"trials_per_cell": 0}, "seed": 1}, "0 is less than the minimum of 1"),
        ("patching/gpu-host", {"execution": {"launcher": "slurm"}}, "'slurm' is not one of"),
        ("outliers/local", {"models": [{"source": "a", "gpus": 0}]}, "0 is less than the minimum of 1"),
        ("outliers/moe-sweep", {"models": []}, "[] should be non-empty"),
    ],
)
def test_a_bad_parameter_is_refused_before_anything_starts(
    deployments: dict[str, DeploymentResponse], name: str, parameters: dict[str, Any], says: str
) -> None:
    with pytest.raises(PrefectHTTPStatusError) as refused:
        run_of(deployments[name], parameters)
    assert says in str(refused.value)
