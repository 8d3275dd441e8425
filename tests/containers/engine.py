"""The Docker engine of this machine and what the tests need of it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path

import docker
import requests
from docker.errors import DockerException, ImageNotFound

from flows.execution import Execution
from flows.launchers.images import version
from flows.launchers.settings import ContainerSettings, DockerSettings
from tests.requirements import need

REPOSITORY = Path(__file__).parents[2]
FLOWS_IMAGE = f"tomograph-flows:{version()}"
TORCH_IMAGE = f"tomograph-torch:{version()}-cpu"
VLLM_IMAGE = f"tomograph-vllm:{version()}-cpu"
PLUGINS = [f"{REPOSITORY}/tests:/app/tests:ro"]
"""The toy tasks, seen by a container."""


@functools.cache
def engine() -> docker.DockerClient | None:
    """A client of the engine, None where none answers."""
    try:
        client = docker.DockerClient.from_env(timeout=60)
        client.ping()
    except (DockerException, requests.RequestException, OSError):
        return None
    return client


def need_image(reference: str) -> docker.DockerClient:
    """Skip the test, or fail it under ``REQUIRE=docker``, without an engine that has this image."""
    client = engine()
    need("docker", client is not None, "a running Docker engine")
    assert client is not None
    try:
        client.images.get(reference)
    except ImageNotFound:
        need("docker", False, f"the image {reference}: make images")
    return client


def toy_execution(
    *, network: str | None = None, volumes: Mapping[str, str] | None = None, memory: str | None = None, **more: object
) -> Execution:
    """Containers for the toy tasks: they need no torch, so the small image runs them."""
    return Execution(
        launcher="docker",
        container=ContainerSettings(
            images={"torch": FLOWS_IMAGE},
            memory=memory,
            shared_memory="64MiB",
            volumes=[*PLUGINS, *(f"{source}:{path}" for source, path in (volumes or {}).items())],
        ),
        docker=DockerSettings(network=network, variables=["PYTHONPATH"] if "PYTHONPATH" in os.environ else []),
        **more,  # type: ignore[arg-type]
    )


def labelled(**labels: str) -> list[str]:
    """Running containers with these labels, by id."""
    client = engine()
    assert client is not None
    wanted = [f"tomograph.{name}={value}" for name, value in labels.items()]
    return [one["Id"] for one in client.api.containers(filters={"label": wanted or ["tomograph.domain"]})]
