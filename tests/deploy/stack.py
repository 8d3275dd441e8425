"""The stack of deploy/compose.yaml, brought up beside others on this machine, with stand-ins for two public images."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import httpx
import s3fs

from flows.server import free_port
from tests.containers.base import cli
from tests.containers.engine import FLOWS_IMAGE, engine
from tests.s3_server import weed

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
COMPOSE_FILE = DEPLOY / "compose.yaml"
GPU_FILE = DEPLOY / "compose.gpu.yaml"
EXAMPLE = DEPLOY / "stack.env.example"
STAND_INS = Path(__file__).parent / "compose_images"
DATABASE_IMAGE, OBJECT_STORE_IMAGE = "tomograph-test-database:1", "tomograph-test-object-store:1"
SOCKET = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
HEALTHY_SECONDS = 60
ENDED_SECONDS = 180
PROJECT_LABEL = "com.docker.compose.project"


@functools.cache
def compose() -> tuple[str, ...] | None:
    """The command of Docker Compose: the plug-in of today, or the program of before."""
    for command in (("docker", "compose"), ("docker-compose",)):
        with contextlib.suppress(OSError):
            if subprocess.run([*command, "version"], capture_output=True).returncode == 0:
                return command
    return None


def settings(**values: str) -> str:
    """The example of the stack's settings with values for its variables."""
    text = EXAMPLE.read_text()
    for name, value in values.items():
        text, count = re.subn(rf"^#?{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert count == 1, f"{EXAMPLE.name} has no {name}"
    return text


def variables() -> set[str]:
    """Names of all settings that the example has, in use or not."""
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", EXAMPLE.read_text(), re.MULTILINE))


def run_compose(*arguments: str, environment: Path, files: tuple[Path, ...] = (COMPOSE_FILE,)) -> str:
    """Output of a Compose command. Raises AssertionError with what it said when it fails."""
    command = compose()
    assert command is not None
    named = [part for file in files for part in ("--file", str(file))]
    inherited = {name: value for name, value in os.environ.items() if name not in variables()}
    done = subprocess.run(
        [*command, "--env-file", str(environment), *named, *arguments],
        capture_output=True,
        text=True,
        env=inherited,
        cwd=environment.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Stack:
    """A running one."""

    project: str
    environment: Path
    server_port: int
    s3_port: int
    access_key: str
    secret_key: str

    @property
    def api(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.server_port}/api", timeout=30)

    def post(self, path: str, body: Any = None) -> Any:
        """What the Prefect server answers. Raises ``httpx.HTTPStatusError`` when it refuses."""
        with self.api as api:
            return api.post(path, json=body or {}).raise_for_status().json()

    def get(self, path: str) -> Any:
        """Like ``post``."""
        with self.api as api:
            return api.get(path).raise_for_status().json()

    def filesystem(self, **credentials: Any) -> s3fs.S3FileSystem:
        given = {"key": self.access_key, "secret": self.secret_key} | credentials
        return s3fs.S3FileSystem(
            endpoint_url=f"http://127.0.0.1:{self.s3_port}",
            use_listings_cache=False,
            skip_instance_cache=True,
            **given,
        )

    def container(self, service: str) -> Any:
        labels = [f"{PROJECT_LABEL}={self.project}", f"com.docker.compose.service={service}"]
        [found] = _engine().containers.list(all=True, filters={"label": labels})
        return found

    def say(self, service: str, *command: str) -> str:
        """Output of a command in a service's container."""
        code, output = self.container(service).exec_run(list(command))
        assert code == 0, output.decode()
        return output.decode()

    def logs(self) -> str:
        return run_compose("--project-name", self.project, "logs", "--tail=40", environment=self.environment)


def build_stand_ins() -> None:
    """Build the images that stand in for PostgreSQL's and SeaweedFS's own.

    Raises ``subprocess.CalledProcessError`` when that fails.
    """
    program = weed()
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(STAND_INS, folder, dirs_exist_ok=True)
        shutil.copy(program, Path(folder, "weed"))
        for target, image in (("database", DATABASE_IMAGE), ("object-store", OBJECT_STORE_IMAGE)):
            told = ["--build-arg", f"BASE={FLOWS_IMAGE}", "--target", target, "--tag", image]
            subprocess.run(
                [cli(), "build", "--quiet", *told, folder],
                check=True,
                env=os.environ | {"DOCKER_BUILDKIT": "1"},
                stdout=subprocess.DEVNULL,
            )


@contextlib.contextmanager
def running_stack(folder: Path, **more: str) -> Iterator[Stack]:
    """The stack with these settings, healthy; in the end nothing of it is left on the engine."""
    build_stand_ins()
    project = f"tomograph-test-{secrets.token_hex(4)}"
    stack = Stack(project, folder / "stack.env", free_port(), free_port(), "tester", secrets.token_hex(16))
    stack.environment.write_text(
        settings(
            COMPOSE_PROJECT_NAME=project,
            TOMOGRAPH_DATABASE_PASSWORD="p@ss/word: with 'quotes' % and #",
            TOMOGRAPH_S3_ACCESS_KEY=stack.access_key,
            TOMOGRAPH_S3_SECRET_KEY=stack.secret_key,
            DOCKER_GID=str(os.stat(SOCKET).st_gid),
            TOMOGRAPH_DOCKER_SOCKET=SOCKET,
            TOMOGRAPH_SERVER_PORT=str(stack.server_port),
            TOMOGRAPH_S3_PORT=str(stack.s3_port),
            TOMOGRAPH_POSTGRES_IMAGE=DATABASE_IMAGE,
            TOMOGRAPH_SEAWEEDFS_IMAGE=OBJECT_STORE_IMAGE,
            TOMOGRAPH_DOCKER_NETWORK=project,
            **more,
        )
    )
    try:
        _up(stack)
        yield stack
    finally:
        run_compose("--project-name", project, "down", "--volumes", environment=stack.environment)
        assert left_of(project) == []


def left_of(project: str) -> list[str]:
    """What a project has on the engine."""
    client, ours = _engine(), {"label": f"{PROJECT_LABEL}={project}"}
    found = [*client.containers.list(all=True, filters=ours), *client.networks.list(filters=ours)]
    return [one.name for one in [*found, *client.volumes.list(filters=ours)]]


def _up(stack: Stack) -> None:
    waiting = ["--wait"] if compose() != ("docker-compose",) else []
    try:
        run_compose("--project-name", stack.project, "up", "--detach", *waiting, environment=stack.environment)
        deadline = time.monotonic() + HEALTHY_SECONDS
        while stack.container("worker").attrs["State"]["Health"]["Status"] != "healthy":
            assert time.monotonic() < deadline, "the worker is not healthy"
            time.sleep(0.5)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{stack.logs()}") from error


def _engine() -> docker.DockerClient:
    client = engine()
    assert client is not None
    return client
