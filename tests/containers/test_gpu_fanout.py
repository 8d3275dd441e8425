"""GPUs of one host, leased to containers of several flows at once."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import docker
import pytest

from flows.fanout import StageFailed
from flows.gpus import slot_rows
from flows.holders import domain
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tests.containers.engine import REPOSITORY, labelled, toy_execution
from tests.containers.gpu_flow import HOLD, gpu_flow, runtime
from tests.containers.gpu_task import HoldParams
from tests.flows.processes import wait_until

pytestmark = pytest.mark.usefixtures("prefect_server")

FAKE_TORCH = {f"{REPOSITORY}/tests/containers/fake_torch/torch": "/app/torch:ro"}
IDLE_SECONDS = 2.0
"""A slot is without a lease for the time of a lock's poll; on a busy machine with two cores, this long."""


def parameters(store: Path, seeds: range, hold: HoldParams, gpus: int = 1) -> dict[str, Any]:
    execution = toy_execution(volumes=FAKE_TORCH, device="cuda")
    return {
        "store": str(store),
        "seeds": list(seeds),
        "hold": hold.model_dump(),
        "execution": execution.model_dump(mode="json"),
        "gpus": gpus,
    }


def start(gpus: Path, values: dict[str, Any], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.containers.gpu_flow", str(gpus), json.dumps(values)]
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)


def finished(store: Path) -> int:
    return len(list(store.glob("shards/gpu.hold/*/manifest.json")))


class Watch:
    """Looks at the slots all the time, as ``python -m flows gpus`` does, and remembers how long each stood empty."""

    def __init__(self) -> None:
        self.longest_idle: dict[str, float] = {}
        self._free_since: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            now = time.monotonic()
            for row in slot_rows():
                if row.occupant is not None:
                    self._free_since.pop(row.slot, None)
                else:
                    idle = now - self._free_since.setdefault(row.slot, now)
                    self.longest_idle[row.slot] = max(self.longest_idle.get(row.slot, 0), idle)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
def test_two_flows_share_four_gpus_and_one_is_killed(
    tmp_path: Path, gpus: Path, toy_engine: docker.DockerClient
) -> None:
    """40 shards, 4 slots. The shards themselves fail if a GPU is held by another one."""
    store = tmp_path / "store"
    hold = HoldParams(chunks=4, seconds=0.3)
    mine, other = (parameters(store, seeds, hold) for seeds in (range(20), range(20, 40)))
    logs = [tmp_path / f"{name}.log" for name in ("mine", "killed", "again")]
    flows = [start(gpus, mine, logs[0]), start(gpus, other, logs[1])]
    wait_until(lambda: all(row.occupant for row in slot_rows()), 60, "all GPUs are in use")
    with Watch() as watch:
        wait_until(lambda: finished(store) >= 4, 120, "some shards are finished")
        assert {row.occupant.flow for row in slot_rows() if row.occupant} != {""}
        flows[1].kill()
        flows[1].wait()
        again = start(gpus, other, logs[2])
        wait_until(lambda: finished(store) >= 32, 240, "most shards are finished")
    assert flows[0].wait(120) == 0, logs[0].read_text()
    assert again.wait(120) == 0, logs[2].read_text()
    assert finished(store) == 40
    assert max(watch.longest_idle.values(), default=0.0) < IDLE_SECONDS, watch.longest_idle
    assert all((gpus / name).read_text().count("taken") >= 5 for name in ("GPU-aaaa", "GPU-dddd"))
    repeated = [
        manifest["run"]["reused_chunks"]
        for manifest in (json.loads(path.read_text()) for path in store.glob("shards/gpu.hold/*/manifest.json"))
    ]
    assert sum(count > 0 for count in repeated) <= 4, "only what ran when its flow was killed was taken up again"
    taken = sum((gpus / name).read_text().count("taken") for name in ("GPU-aaaa", "GPU-bbbb", "GPU-cccc", "GPU-dddd"))
    assert taken <= 44, "nothing else was repeated"


def test_shards_with_several_gpus_and_with_one_get_along(
    tmp_path: Path, gpus: Path, toy_engine: docker.DockerClient
) -> None:
    store = tmp_path / "store"
    execution = toy_execution(volumes=FAKE_TORCH, device="cuda")

    async def both() -> list[int]:
        hold = HoldParams(chunks=1, seconds=0.2)
        flows = [
            gpu_flow(str(store), list(seeds), hold, execution, count)
            for seeds, count in ((range(5), 1), (range(10, 13), 3), (range(20, 23), 2))
        ]
        return await asyncio.gather(*flows)

    with runtime(gpus):
        assert asyncio.run(both()) == [5, 3, 3]
    for seed, count in ((0, 1), (10, 3), (20, 2)):
        shard = Shard(Store(store), HOLD.spec(HoldParams(chunks=1, seconds=0.2), seed=seed).path)
        assert shard.table("gpus")["gpus"].to_pylist() == [count]


def test_a_runtime_that_takes_the_request_and_gives_nothing_is_found_out(
    tmp_path: Path, gpus: Path, toy_engine: docker.DockerClient
) -> None:
    execution = toy_execution(volumes=FAKE_TORCH, device="cuda")
    says = r"refused its input: device = 'cuda': torch imaginary sees 0 GPUs; check the driver"
    with runtime(gpus, gives=False), pytest.raises(StageFailed, match=says) as failed:
        asyncio.run(gpu_flow(str(tmp_path / "store"), [1], HoldParams(), execution))
    assert failed.value.field == "device"


def test_a_host_without_nvidias_runtime_says_so(tmp_path: Path, gpus: Path, toy_engine: docker.DockerClient) -> None:
    if "nvidia" in toy_engine.info()["Runtimes"]:
        pytest.skip("this engine has NVIDIA's runtime")
    started = time.monotonic()
    execution = toy_execution(volumes=FAKE_TORCH, device="cuda")
    with pytest.raises(StageFailed, match=r"promised a GPU, and the container engine gives none.*toolkit") as failed:
        asyncio.run(gpu_flow(str(tmp_path / "store"), [1], HoldParams(), execution))
    assert failed.value.field == "device"
    assert time.monotonic() - started < 20, "this is not tried again"
    assert labelled(domain=domain()) == []
