"""A flow over imaginary GPUs, and the container runtime that gives them. Run as a script, it is a process to be killed.

What is imaginary is the runtime alone: where NVIDIA's would make a device request into devices, this one mounts a
file for each GPU. Everything else is the real launcher and the real engine.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import docker
from prefect import flow

from flows.execution import Execution
from flows.fanout import FanOut, sweep
from tasks.artifacts.store import Store
from tests.containers.gpu_task import FOLDER, KINDS, HoldParams

HOLD = KINDS[0]
CREATE = docker.APIClient.create_container_from_config


def runtime(gpus: Path, *, gives: bool = True) -> Any:
    """A patch of the engine's client: ``gpus`` is the folder with a file for each GPU."""

    def create(client: docker.APIClient, body: dict[str, Any], name: str | None = None) -> Any:
        requests = body["HostConfig"].pop("DeviceRequests")
        for uuid in [uuid for request in requests for uuid in request["DeviceIDs"] if gives]:
            mount = {"Type": "bind", "Source": str(gpus / uuid), "Target": f"{FOLDER}/{uuid}", "ReadOnly": False}
            body["HostConfig"]["Mounts"].append(mount)
        return CREATE(client, body, name=name)

    return mock.patch.object(docker.APIClient, "create_container_from_config", create)


@flow(name="gpu-flow", on_cancellation=[sweep], on_crashed=[sweep])
async def gpu_flow(store: str, seeds: list[int], hold: HoldParams, execution: Execution, gpus: int = 1) -> int:
    async with FanOut(Store(store), execution, stages=("hold",)) as fan:
        return len(await fan.run("hold", [HOLD.spec(hold, seed=seed) for seed in seeds], gpus=gpus))


if __name__ == "__main__":
    with runtime(Path(sys.argv[1])):
        print(asyncio.run(gpu_flow(**json.loads(sys.argv[2]))))
