"""The request that creates a shard's container, as it goes to the engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.launchers.base import Labels, ShardRun
from flows.launchers.docker import container as docker_container
from flows.launchers.docker.container import Image, container_body
from flows.launchers.settings import ContainerSettings, DockerSettings
from flows.slots import Lease, Slot, SlotPool
from tasks.errors import BadInput

IMAGE = Image("registry.example/torch:1", "sha256:" + "a" * 64, "sha256:" + "d" * 64)
LABELS = Labels("flow-run", "task-run", "trials", "shards/patching.trials/abc", "holder", "domain", "gpu-GPU-aaaa")
GPUS = [Slot("gpu-GPU-aaaa", "0", 4), Slot("gpu-GPU-bbbb", "1", 4)]
S3 = "s3://bucket/store"


@pytest.fixture
def lease() -> Iterator[Lease]:
    with SlotPool(GPUS).try_lease(1) as held:  # type: ignore[union-attr]
        yield held


@pytest.fixture(autouse=True)
def not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_container.os, "getuid", lambda: 1000)
    monkeypatch.setattr(docker_container.os, "getgid", lambda: 1001)


def run(store: str = S3, device: str = "cuda") -> ShardRun:
    return ShardRun(f"{store}/shards/patching.trials/abc/spec.json", LABELS, device=device, threads=4, batch_size=8)


def body(lease: Lease, environ: dict[str, str] | None = None, of: ShardRun | None = None, **settings: Any) -> Any:
    docker = DockerSettings(**{name: settings.pop(name) for name in ("network", "variables") if name in settings})
    cdi = settings.pop("cdi", False)
    container = ContainerSettings(**settings)
    return container_body(of or run(), lease, IMAGE, container, docker, cdi=cdi, environ=environ or {})


def environment(made: dict[str, Any]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in made["Env"])


def test_the_whole_request(lease: Lease) -> None:
    made = body(lease, {"AWS_ACCESS_KEY_ID": "key", "HOME": "/home/me"}, memory="64GiB", network="stores")
    assert made == {
        "Image": "sha256:" + "a" * 64,
        "Entrypoint": ["python", "-m", "tasks"],
        "Cmd": [
            *("run", "s3://bucket/store/shards/patching.trials/abc/spec.json", "--device", "cuda", "--threads", "4"),
            *("--batch-size", "8", "--exit-with-parent"),
        ],
        "Env": [
            "AWS_ACCESS_KEY_ID=key",
            "OMP_NUM_THREADS=4",
            "TOMOGRAPH_GPUS=GPU-aaaa",
            "TOMOGRAPH_IMAGE=registry.example/torch:1@sha256:" + "d" * 64,
        ],
        "Labels": {
            "tomograph.flow_run": "flow-run",
            "tomograph.task_run": "task-run",
            "tomograph.stage": "trials",
            "tomograph.shard": "shards/patching.trials/abc",
            "tomograph.holder": "holder",
            "tomograph.domain": "domain",
            "tomograph.slots": "gpu-GPU-aaaa",
        },
        "User": "1000:1001",
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "OpenStdin": True,
        "StdinOnce": True,
        "HostConfig": {
            "NetworkMode": "stores",
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": "rw,exec,mode=1777"},
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ShmSize": 2 * 2**30,
            "Memory": 64 * 2**30,
            "MemorySwap": 64 * 2**30,
            "DeviceRequests": [
                {
                    "Driver": "nvidia",
                    "Count": 0,
                    "DeviceIDs": ["GPU-aaaa"],
                    "Capabilities": [["gpu", "compute", "utility"]],
                }
            ],
            "Mounts": [{"Type": "volume", "Source": "tomograph-cache-1000", "Target": "/cache", "ReadOnly": False}],
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "16m", "max-file": "2"}},
        },
    }


def test_podman_gets_its_gpu_by_the_device_interface(lease: Lease) -> None:
    requests = body(lease, cdi=True)["HostConfig"]["DeviceRequests"]
    assert requests == [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-aaaa"]}]


def test_a_lease_of_several_gpus_asks_for_all_of_them() -> None:
    with SlotPool(GPUS).try_lease(2) as both:  # type: ignore[union-attr]
        made = body(both)
    assert made["HostConfig"]["DeviceRequests"][0]["DeviceIDs"] == ["GPU-aaaa", "GPU-bbbb"]
    assert environment(made)["TOMOGRAPH_GPUS"] == "GPU-aaaa,GPU-bbbb"


def test_a_shard_on_the_cpu_sees_no_gpu() -> None:
    with SlotPool([Slot("cpu-0", None, 2)]).try_lease() as held:  # type: ignore[union-attr]
        made = body(held, of=run(device="cpu"))
    assert made["HostConfig"]["DeviceRequests"] == []
    assert environment(made)["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_a_folder_as_store_is_seen_at_its_own_place(lease: Lease, tmp_path: Path) -> None:
    made = body(lease, of=run(str(tmp_path)))
    assert {"Type": "bind", "Source": str(tmp_path), "Target": str(tmp_path), "ReadOnly": False} in (
        made["HostConfig"]["Mounts"]
    )
    assert made["User"] == "1000:1001"


def test_root_becomes_the_images_user_or_the_owner_of_the_store(
    lease: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_container.os, "getuid", lambda: 0)
    made = body(lease)
    assert made["User"] == ""
    assert made["HostConfig"]["Mounts"][0]["Source"] == "tomograph-cache"
    owner = tmp_path.stat()
    assert body(lease, of=run(str(tmp_path / "not" / "yet")))["User"] == f"{owner.st_uid}:{owner.st_gid}"


def test_the_store_and_the_hub_get_their_variables_and_nobody_else_does(lease: Lease) -> None:
    given = {
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HF_TOKEN": "token",
        "TOMOGRAPH_PLUGINS": "my.tasks",
        "TOMOGRAPH_RUNTIME_DIR": "/run/tomograph",
        "TOMOGRAPH_TORCH_IMAGE": "image",
        "TOMOGRAPH_LABEL_SHARD": "outer",
        "PREFECT_API_KEY": "secret",
        "MY_PROXY": "http://proxy",
        "PATH": "/bin",
    }
    passed = {"AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "TOMOGRAPH_PLUGINS"}
    own = {"OMP_NUM_THREADS", "TOMOGRAPH_IMAGE", "TOMOGRAPH_GPUS"}
    assert set(environment(body(lease, given))) == passed | own
    assert set(environment(body(lease, given, variables=["MY_PROXY", "UNSET"]))) == passed | own | {"MY_PROXY"}


def test_a_variable_that_names_a_file_brings_the_file(lease: Lease, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text("secret")
    made = body(lease, {"AWS_SHARED_CREDENTIALS_FILE": str(credentials), "HF_HOME": str(tmp_path)})
    inside = "/run/secrets/tomograph/AWS_SHARED_CREDENTIALS_FILE"
    assert environment(made)["AWS_SHARED_CREDENTIALS_FILE"] == inside
    assert {"Type": "bind", "Source": str(credentials), "Target": inside, "ReadOnly": True} in (
        made["HostConfig"]["Mounts"]
    )
    assert "HF_HOME" not in environment(made), "a folder of the host means nothing in a container"


def test_volumes_are_folders_or_names(lease: Lease) -> None:
    mounts = body(lease, volumes=["~/models:/models:ro", "disk:/cache"])["HostConfig"]["Mounts"]
    assert mounts == [
        {"Type": "volume", "Source": "disk", "Target": "/cache", "ReadOnly": False},
        {"Type": "bind", "Source": os.path.expanduser("~/models"), "Target": "/models", "ReadOnly": True},
    ]


def test_a_volume_in_the_place_of_the_store_is_refused(lease: Lease, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"execution\.container\.volumes.*takes {tmp_path}, where a shard finds its"):
        body(lease, of=run(str(tmp_path)), volumes=[f"disk:{tmp_path}"])


def test_a_volume_may_replace_the_temporary_files(lease: Lease) -> None:
    host = body(lease, volumes=["scratch:/tmp"])["HostConfig"]
    assert host["Tmpfs"] == {}
    assert "/tmp" in {mount["Target"] for mount in host["Mounts"]}


def test_the_network_may_come_from_the_flows_environment(lease: Lease) -> None:
    assert body(lease)["HostConfig"]["NetworkMode"] == "bridge"
    given = {"TOMOGRAPH_DOCKER_NETWORK": "stack"}
    made = body(lease, given)
    assert made["HostConfig"]["NetworkMode"] == "stack"
    assert "TOMOGRAPH_DOCKER_NETWORK" not in environment(made)
    assert body(lease, given, network="mine")["HostConfig"]["NetworkMode"] == "mine"
