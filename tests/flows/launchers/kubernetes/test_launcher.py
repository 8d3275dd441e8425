"""A shard as a Job, from start to success: the official client against a recorded API, over HTTP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.launchers.base import Exit, ShardRejected
from tasks.artifacts.catalog import store_spec
from tasks.artifacts.manifest import read_manifest
from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tests.flows.launchers.kubernetes.api import NAMESPACE, TOKEN, KubernetesApi
from tests.flows.launchers.kubernetes.shards import (
    EVENTS,
    IMAGE,
    SUCCESS,
    error_of,
    finish,
    labels,
    launcher,
    own,
    said,
    shard_run,
    started,
)
from tests.toy_tasks import KINDS, SquaresParams

pytestmark = pytest.mark.usefixtures("environment")

[SQUARES] = [kind for kind in KINDS if kind.name == "toy.squares"]


def test_success(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster(*SUCCESS)
    events, end = finish()
    assert own(events) == EVENTS
    assert end == Exit(0)
    name = api.created()["metadata"]["name"]
    assert f"runs in the pod {name}-x7k2p on gpu-node-3" in said(events)
    assert not api.asked("^DELETE"), "a finished Job stays, for people to look at"
    assert {request.headers["authorization"] for request in api.requests} == {f"Bearer {TOKEN}"}


def test_the_body_that_arrives(cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOMOGRAPH_POD_NAME", "flow-pod-1")
    monkeypatch.setenv("TOMOGRAPH_POD_UID", "1d9d2b0e")
    api = cluster(*SUCCESS)
    assert finish(launcher(timeout_minutes=1.5))[1].code == 0
    body = api.created()
    name = body["metadata"]["name"]
    assert name.startswith("tomograph-squares-3f62e74c-")
    carried = labels().as_labels() | {
        "tomograph.flow_pod": "flow-pod-1",
        "tomograph.flow_pod_uid": "1d9d2b0e",
        "tomograph.flow_pod_namespace": NAMESPACE,
    }
    metadata = {
        "labels": {"app.kubernetes.io/managed-by": "tomograph"}
        | {name: value for name, value in carried.items() if name != "tomograph.shard"},
        "annotations": carried,
    }
    security = {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "privileged": False}
    assert body == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            **metadata,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "flow-pod-1", "uid": "1d9d2b0e"}],
        },
        "spec": {
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": 600,
            "template": {
                "metadata": metadata,
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": 5,
                    "activeDeadlineSeconds": 90,
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 10001,
                        "runAsGroup": 10001,
                        "fsGroup": 10001,
                        "fsGroupChangePolicy": "OnRootMismatch",
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [
                        {
                            "name": "shard",
                            "image": IMAGE,
                            "imagePullPolicy": "IfNotPresent",
                            "command": ["python", "-m", "tasks"],
                            "args": shard_run().arguments,
                            "env": [
                                {"name": "OMP_NUM_THREADS", "value": "4"},
                                {"name": "TOMOGRAPH_GPUS", "value": "count:1"},
                                {"name": "TOMOGRAPH_IMAGE", "value": IMAGE},
                            ],
                            "envFrom": [{"secretRef": {"name": "tomograph-credentials", "optional": False}}],
                            "resources": {
                                "requests": {"cpu": "4", "memory": "64Gi", "nvidia.com/gpu": "1"},
                                "limits": {"memory": "64Gi", "nvidia.com/gpu": "1"},
                            },
                            "volumeMounts": [
                                {"name": "shm", "mountPath": "/dev/shm"},
                                {"name": "tmp", "mountPath": "/tmp"},
                                {"name": "cache", "mountPath": "/cache"},
                            ],
                            "securityContext": {**security, "capabilities": {"drop": ["ALL"]}},
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                        }
                    ],
                    "volumes": [
                        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
                        {"name": "tmp", "emptyDir": {}},
                        {"name": "cache", "emptyDir": {}},
                    ],
                },
            },
        },
    }


def test_two_gpus(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster(*SUCCESS)
    asyncio.run(started(launcher(), gpus=2))
    [container] = api.created()["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert {"name": "TOMOGRAPH_GPUS", "value": "count:2"} in container["env"]


def test_a_shard_has_no_more_threads_than_cpus(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster(*SUCCESS)
    asyncio.run(started(launcher(cpu="6"), replace(shard_run(), threads=12), gpus=2))
    [container] = api.created()["spec"]["template"]["spec"]["containers"]
    assert container["args"][-2:] == ["--threads", "6"]
    assert container["resources"]["requests"]["cpu"] == "6"


def test_real_shards(cluster: Callable[..., KubernetesApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container's arguments, run as a process: they are a shard's, and what it says comes through."""
    monkeypatch.setenv("TOMOGRAPH_PLUGINS", "tests.toy_tasks")
    api = cluster(runs_shards=True)
    store = Store(tmp_path / "store")
    using = launcher(volumes=[f"runs:{tmp_path}"])

    def outcome(params: SquaresParams) -> tuple[list[dict[str, Any]], Exit]:
        spec = SQUARES.spec(params)
        return finish(using, replace(shard_run(), spec_url=store_spec(store, spec), device="cpu"))

    spec = SQUARES.spec(SquaresParams(sleep_s=0.1))
    events, end = outcome(SquaresParams(sleep_s=0.1))
    assert end.code == 0
    assert events[-1]["event"] == "finished"
    assert read_manifest(store, spec.path).counts == {"numbers": 10}
    events, end = outcome(SquaresParams(fail="bad_input", fail_at=1))
    error = error_of(end)
    assert isinstance(error, ShardRejected)
    assert (error.field, "told to refuse" in str(error)) == ("params.fail", True)
    events, end = outcome(SquaresParams(fail="noise", fail_at=1))
    assert end.code == 0
    assert "a subprocess prints this" in said(events)
    assert "this task was told to have a bug" in str(error_of(outcome(SquaresParams(fail="bug"))[1]))
    assert "was killed by SIGKILL" in str(error_of(outcome(SquaresParams(fail="kill"))[1]))
    assert len(api.jobs) == 5


def test_the_client_is_loaded_for_those_who_need_it() -> None:
    program = "import sys, flows.launchers.kubernetes.launcher as k; print(*{'kubernetes', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_environments_need_an_image_by_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    using = launcher()
    using.check_environment("torch", "cuda")
    with pytest.raises(BadInput, match="by digest") as refused:
        using.check_environment("vllm", "cuda")
    assert refused.value.field == "execution.container.images.vllm"
    monkeypatch.setenv("TOMOGRAPH_VLLM_IMAGE", IMAGE)
    using.check_environment("vllm", "cuda")


@pytest.mark.parametrize(
    ("device", "settings", "threads", "expected"),
    [
        ("auto", {}, None, ("cuda", 8, 4)),
        ("cuda", {}, 6, ("cuda", 8, 6)),
        ("cpu", {}, None, ("cpu", 8, 2)),
        ("auto", {"cpu": "12"}, None, ("cuda", 8, 12)),
        ("cpu", {"cpu": "500m"}, None, ("cpu", 8, 1)),
    ],
)
def test_places(device: str, settings: dict[str, str], threads: int | None, expected: tuple[str, int, int]) -> None:
    """Without asking a cluster."""
    pool = launcher(**settings).slots(device=device, count=None, threads=threads)
    assert (pool.device, len(pool), pool.slots[0].threads) == expected
