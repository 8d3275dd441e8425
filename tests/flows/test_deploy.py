"""`python -m flows deploy` against a real server: what it makes, that a second run changes nothing, what it refuses."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessJobConfiguration
from rich.console import Console

from flows import deployments, pools
from flows.deploy import STORE_VARIABLE, deploy
from flows.server import ServerFailed, TemporaryServer, free_port
from tasks.errors import BadInput

T = TypeVar("T")
REPOSITORY = Path(__file__).parents[2]
PROCESS, KUBERNETES = "tomograph-process", "tomograph-kubernetes"
SECRET = 'hunter2 "and" {more}'


def asked(question: Callable[[PrefectClient], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with get_client() as client:
            return await question(client)

    return asyncio.run(ask())


def deployed(*pool_names: str, **options: Any) -> dict[str, str]:
    """Deploy, and return what was done to each thing."""
    output = io.StringIO()
    asyncio.run(deploy(Console(file=output, width=200), pool_names, **options))
    lines = [line for line in output.getvalue().splitlines() if not line.startswith(STORE_VARIABLE)]
    return {line[12:46].strip(): line[46:] for line in lines}


def on_command_line(*arguments: str, api_url: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PREFECT_API_URL": api_url} if api_url else {})
    command = [sys.executable, "-m", "flows", "deploy", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def prefect_deploy(folder: Path) -> subprocess.CompletedProcess[str]:
    """As somebody does it in that folder's shell."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    environment = os.environ | {"PWD": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def state(*without: str) -> dict[str, Any]:
    """Everything on the server that deploying is about, times of change included, but for fields of these names."""

    async def read(client: PrefectClient) -> dict[str, Any]:
        everything = [
            *(await client.read_deployments()),
            *(await client.read_work_pools()),
            *(await client.read_variables()),
            *(await client.read_block_documents_by_type("secret", include_secrets=False)),
        ]
        return {f"{type(one).__name__} {one.id}": stripped(one.model_dump(mode="json"), without) for one in everything}

    return asked(read)


def stripped(value: Any, names: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {name: stripped(one, names) for name, one in value.items() if name not in names}
    return [stripped(one, names) for one in value] if isinstance(value, list) else value


@pytest.fixture
def server(prefect_server: str) -> Iterator[str]:
    """A server that has nothing of ours."""

    async def clear(client: PrefectClient) -> None:
        for name in (PROCESS, KUBERNETES):
            with suppress(ObjectNotFound):
                await client.delete_work_pool(name)
        for one in await client.read_deployments():
            await client.delete_deployment(one.id)
        with suppress(ObjectNotFound):
            await client.delete_variable_by_name(STORE_VARIABLE)
        for block in await client.read_block_documents_by_type("secret"):
            await client.delete_block_document(block.id)

    asked(clear)
    yield prefect_server
    asked(clear)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[dict[str, Any]], object]], None]:
    """Deploy from a changed copy of prefect.yaml."""

    def change(edit: Callable[[dict[str, Any]], object]) -> None:
        content = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
        content["deployments"] = [json.loads(json.dumps(one)) for one in content["deployments"]]  # aliases undone
        edit(content)
        (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(content))
        monkeypatch.setattr(deployments, "PROJECT_FILE", tmp_path / "prefect.yaml")

    return change


def test_the_second_run_changes_nothing(server: str) -> None:
    names = [
        f"{deployments.flow_of(one['entrypoint']).name}/{one['name']}" for one in deployments.content()["deployments"]
    ]
    first = on_command_line("--store", "s3://bucket/studies")
    assert first.returncode == 0, first.stderr
    for name in (*names, PROCESS, KUBERNETES):
        [line] = [line for line in first.stderr.splitlines() if f" {name} " in line]
        assert line.endswith("created"), line
    before = state()
    assert len(before) == len(names) + 3

    second = on_command_line("--store", "s3://bucket/studies")
    assert second.returncode == 0, second.stderr
    assert all("unchanged" in line for line in second.stderr.splitlines())
    assert deployed().keys() == {*names, PROCESS, KUBERNETES, STORE_VARIABLE}
    assert state() == before


def test_prefect_deploy_says_which_pool_is_missing(server: str) -> None:
    done = prefect_deploy(REPOSITORY)
    assert done.returncode != 0
    assert "work pool 'tomograph-process' which does not exist" in " ".join(done.stdout.split())


def test_prefect_deploy_from_a_clean_clone_makes_the_same_deployments(server: str, tmp_path: Path) -> None:
    """But for the version, which Prefect takes from git, and the folder of the code, which is the clone's."""
    clone = tmp_path / "clone"
    if not (REPOSITORY / ".git").exists():
        pytest.skip("there is nothing to clone")
    tracked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(tracked, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, clone / name)
    deployed(store="s3://bucket/studies")
    mine = state("updated", "version", "version_info", "version_id")

    done = prefect_deploy(clone)
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = state("updated", "version", "version_info", "version_id")
    assert mine.keys() == theirs.keys()
    moved = 0
    for key, deployment in theirs.items():
        if deployment.get("pull_steps") == [working_directory(clone)]:
            deployment["pull_steps"] = [working_directory(REPOSITORY)]
            moved += 1
        assert deployment == mine[key]
    assert moved == sum(one["work_pool"]["name"] == PROCESS for one in deployments.content()["deployments"])


def working_directory(folder: Path) -> dict[str, Any]:
    return {"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}


def test_only_the_chosen_pool_and_its_deployments(server: str) -> None:
    done = deployed(PROCESS)
    assert done[PROCESS] == "created"
    assert KUBERNETES not in done
    assert {"patching/local", "patching/gpu-host"} <= done.keys()
    assert not any("cluster" in name for name in done)


def test_what_prefect_yaml_changes_is_updated(server: str, project: Callable[..., None]) -> None:
    deployed()
    schedule = {"slug": "weekly", "cron": "0 4 * * 2", "timezone": "Europe/Berlin", "active": False}
    daily = {"slug": "daily", "cron": "0 1 * * *", "timezone": "UTC", "active": False}

    def edit(content: dict[str, Any]) -> None:
        one = content["deployments"][0]
        one |= {
            "description": "another",
            "tags": ["tomograph", "new"],
            "schedules": [schedule, daily],
            "concurrency_limit": {"limit": 5, "collision_strategy": "CANCEL_NEW"},
        }
        one["parameters"]["seed"] = 7

    project(edit)
    done = deployed()
    changed = "description, tags, parameters, concurrency_limit, concurrency_options, schedule weekly, schedule daily"
    assert done.pop("patching/local") == f"updated: {changed}"
    assert all(one.startswith("unchanged") for one in done.values())
    one = asked(lambda client: client.read_deployment_by_name("patching/local"))
    assert (one.description, one.tags, one.parameters["seed"]) == ("another", ["tomograph", "new"], 7)
    assert one.global_concurrency_limit.limit == 5
    assert one.concurrency_options.collision_strategy == "CANCEL_NEW"
    found = {each.slug: (each.schedule.cron, each.schedule.timezone, each.active) for each in one.schedules}
    assert found == {"weekly": ("0 4 * * 2", "Europe/Berlin", False), "daily": ("0 1 * * *", "UTC", False)}
    assert all(one.startswith("unchanged") for one in deployed().values())


def test_what_somebody_changed_on_the_server_is_set_right(server: str) -> None:
    deployed()
    before = state("updated")

    async def meddle(client: PrefectClient) -> None:
        one = await client.read_deployment_by_name("outliers/cluster")
        await client.update_deployment(one.id, DeploymentUpdate(pull_steps=[], concurrency_limit=9))
        await client.update_work_pool(KUBERNETES, WorkPoolUpdate(concurrency_limit=1, description="mine"))

    asked(meddle)
    assert state("updated") != before
    done = deployed()
    assert done["outliers/cluster"] == "updated: pull_steps, concurrency_limit"
    assert done[KUBERNETES] == "updated: description, concurrency_limit"
    assert state("updated") == before


def test_schedules_that_somebody_switched_on_or_added_stay(server: str, project: Callable[..., None]) -> None:
    deployed()

    async def switch_on(client: PrefectClient) -> None:
        one = await client.read_deployment_by_name("patching/local")
        await client.update_deployment_schedule(one.id, one.schedules[0].id, active=True)
        own = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 5 * * *"), active=True)
        await client.create_deployment_schedules(one.id, [own])

    asked(switch_on)
    assert all(one.startswith("unchanged") for one in deployed().values())
    project(lambda content: content["deployments"][0].update(description="another"))
    assert deployed()["patching/local"] == "updated: description"
    one = asked(lambda client: client.read_deployment_by_name("patching/local"))
    assert sorted((each.schedule.cron, each.active) for each in one.schedules) == [
        ("0 3 * * 1", True),
        ("0 5 * * *", True),
    ]


def test_a_changed_template_updates_its_pool(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed()
    shutil.copytree(pools.FOLDER, tmp_path / "pools")
    path = tmp_path / "pools" / f"{KUBERNETES}.yaml"
    path.write_text(path.read_text().replace("default: 2Gi", "default: 3Gi"))
    monkeypatch.setattr(pools, "FOLDER", tmp_path / "pools")
    assert deployed()[KUBERNETES] == "updated: base_job_template"
    pool = asked(lambda client: client.read_work_pool(KUBERNETES))
    assert pool.base_job_template["variables"]["properties"]["memory_limit"]["default"] == "3Gi"


def test_stale_deployments_are_reported_and_deleted_when_asked(server: str, project: Callable[..., None]) -> None:
    deployed()

    async def make(client: PrefectClient) -> None:
        flow = await client.create_flow_from_name("somebody-elses")
        await client.create_deployment(flow, "untagged", work_pool_name=PROCESS, work_queue_name="default")

    asked(make)
    project(lambda content: content["deployments"].pop())
    assert deployed()["outliers/moe-sweep-cluster"] == "stale: not in prefect.yaml; --prune deletes it"
    assert "outliers/moe-sweep-cluster" not in deployed(PROCESS, prune=True)
    assert deployed(prune=True)["outliers/moe-sweep-cluster"] == "deleted"
    left = deployed(prune=True)
    assert "outliers/moe-sweep-cluster" not in left
    assert all(one.startswith("unchanged") for one in left.values())
    assert asked(lambda client: client.read_deployment_by_name("somebody-elses/untagged"))


def test_only_deployments_of_some_names(server: str) -> None:
    done = deployed(PROCESS, names=["gpu-host"])
    assert {name for name in done if "/" in name} == {"patching/gpu-host", "outliers/gpu-host"}
    deployed()
    assert not any(one.startswith("stale") for one in deployed(PROCESS, names=["gpu-host"], prune=True).values())
    with pytest.raises(
        BadInput, match=r"--name.*no deployment on tomograph-process has this name.*gpu-host"
    ) as refused:
        deployed(PROCESS, names=["cluster"])
    assert refused.value.value == "cluster"


def test_the_store_is_kept_until_another_is_given(server: str) -> None:
    def stores() -> set[str]:
        found = asked(lambda client: client.read_deployments())
        return {one.parameters["store"] for one in found}

    assert deployed()[STORE_VARIABLE] == "created: runs/store"
    assert stores() == {"runs/store"}
    done = deployed(store="s3://bucket/studies")
    assert done[STORE_VARIABLE] == "updated: s3://bucket/studies"
    assert done["patching/cluster"] == "updated: parameters"
    assert stores() == {"s3://bucket/studies"}
    assert deployed()[STORE_VARIABLE] == "unchanged: s3://bucket/studies"


@pytest.mark.parametrize(
    ("pool", "store", "said"), [(KUBERNETES, None, True), (KUBERNETES, "s3://b/x", False), (PROCESS, None, False)]
)
def test_a_folder_as_the_store_of_a_cluster_is_said(server: str, pool: str, store: str | None, said: bool) -> None:
    output = io.StringIO()
    asyncio.run(deploy(Console(file=output, width=40), [pool], store=store))
    last = output.getvalue().splitlines()[-1]
    expected = "tomograph_store is runs/store, a folder, which pods of a cluster don't share; set it with --store "
    assert last.startswith(expected) == said


def test_the_image_is_the_option_or_the_variable_or_what_is_built(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def image() -> str:
        pool = asked(lambda client: client.read_work_pool(KUBERNETES))
        return pool.base_job_template["variables"]["properties"]["image"]["default"]

    monkeypatch.delenv("TOMOGRAPH_FLOWS_IMAGE", raising=False)
    deployed(KUBERNETES)
    assert image().startswith("tomograph-flows:")
    monkeypatch.setenv("TOMOGRAPH_FLOWS_IMAGE", "registry.example:5000/flows:2")
    deployed(KUBERNETES)
    assert image() == "registry.example:5000/flows:2"
    deployed(KUBERNETES, image="registry.example/flows:3")
    assert image() == "registry.example/flows:3"


@pytest.mark.parametrize("value", [SECRET, "700012340005600078", '{"type": "service_account"}'])
def test_a_secret_reaches_the_flow_and_nothing_else(server: str, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", value)
    done = deployed(PROCESS, secrets=["AWS_SECRET_ACCESS_KEY"])
    assert done["AWS_SECRET_ACCESS_KEY"] == "created"
    before = state()
    assert deployed(PROCESS, secrets=["AWS_SECRET_ACCESS_KEY"])["AWS_SECRET_ACCESS_KEY"] == "unchanged"
    assert deployed(PROCESS)[PROCESS] == "unchanged"
    assert state() == before
    assert value not in str(before)

    async def environment(client: PrefectClient) -> dict[str, str | None]:
        pool = await client.read_work_pool(PROCESS)
        given = {"env": {"OTHER": "1"}}
        return (
            await ProcessJobConfiguration.from_template_and_values(pool.base_job_template, given, client=client)
        ).env

    assert asked(environment) == {"AWS_SECRET_ACCESS_KEY": value, "OTHER": "1"}
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert deployed(PROCESS, secrets=["AWS_SECRET_ACCESS_KEY"])["AWS_SECRET_ACCESS_KEY"] == "updated"
    assert asked(environment)["AWS_SECRET_ACCESS_KEY"] == "another"


@pytest.mark.parametrize(
    ("pool_names", "options", "says"),
    [
        (["nope"], {}, "--pool = 'nope': there is no such work pool"),
        ([], {"image": "Not an image"}, "this is no reference of an image"),
        ([], {"store": " "}, "--store = ' ': is empty"),
        ([], {"store": "s3://key:word@bucket/x"}, "a URL can't carry credentials"),
        ([], {"store": "nope://bucket"}, "Protocol not known"),
        ([], {"secrets": ["UNSET_VARIABLE"]}, "this environment variable is not set"),
        ([], {"secrets": ["path"]}, "this is no name of a variable"),
        ([KUBERNETES], {"secrets": ["PATH"]}, "secrets are for the work pool tomograph-process"),
    ],
)
def test_bad_arguments_are_refused(
    prefect_server: str, pool_names: list[str], options: dict[str, Any], says: str
) -> None:
    before = state()
    with pytest.raises(BadInput) as refused:
        deployed(*pool_names, **options)
    assert says in str(refused.value)
    assert "key:word" not in str(refused.value)
    assert state() == before


def test_the_command_line_says_what_is_bad(prefect_server: str) -> None:
    done = on_command_line("--pool", "nope")
    assert done.returncode == 2
    expected = "--pool = 'nope': there is no such work pool; choose from tomograph-kubernetes, tomograph-process"
    assert done.stderr.splitlines() == [expected]
    done = on_command_line("--everything")
    assert done.returncode == 2
    assert "unrecognized arguments: --everything" in done.stderr


def test_a_pool_of_another_type_is_refused(server: str) -> None:
    asked(lambda client: client.create_work_pool(WorkPoolCreate(name=KUBERNETES, type="process")))
    with pytest.raises(BadInput, match="the server's is of type process, not kubernetes"):
        deployed(KUBERNETES)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ $TOMOGRAPH_NOT_SET }}", "['TOMOGRAPH_NOT_SET']: these environment variables are not set"),
        ("{{ prefect.variables.not_there }}", "'not_there': Prefect has no such variable"),
    ],
)
def test_what_a_template_lacks_does_not_become_nothing(
    server: str, project: Callable[..., None], template: str, says: str
) -> None:
    project(lambda content: content["deployments"][0]["parameters"].update(store=template))
    with pytest.raises(BadInput) as refused:
        deployed()
    assert says in str(refused.value)


def test_what_the_server_refuses_is_said(server: str, project: Callable[..., None]) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["deployments"][0]["work_pool"]["job_variables"] = {"stream_output": "loud"}

    project(edit)
    with pytest.raises(ServerFailed, match="Failure reason: 'loud' is not valid"):
        deployed()


def test_without_a_server_there_is_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    done = on_command_line(api_url=url)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"the Prefect server at {url} does not answer: All connection attempts failed"]


def test_a_server_that_wants_a_password_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:password")
        server = TemporaryServer(tmp_path / "server.log")
        server.start()
    try:
        server.wait()
        done = on_command_line(api_url=server.api_url)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert line.endswith("access is refused; set PREFECT_API_AUTH_STRING to its user:password")
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "user:password")
        assert on_command_line(api_url=server.api_url).returncode == 0
    finally:
        server.stop()
