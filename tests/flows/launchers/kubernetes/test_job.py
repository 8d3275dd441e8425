"""The Job of a shard: whole bodies, what they may not hold, and Kubernetes' own schema of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest

from flows.launchers.base import Labels, ShardRun
from flows.launchers.kubernetes.job import FlowPod, job_body, job_name
from flows.launchers.kubernetes.places import Line, places
from flows.launchers.settings import ContainerSettings, KubernetesSettings
from flows.slots import Lease
from tasks.errors import BadInput
from tests.flows.launchers.kubernetes.api import RECORDINGS

IMAGE = "registry.example/tomograph-torch:0.1.0-cuda@sha256:" + "5" * 64
VERSIONS = ("1.29", "1.34", "1.37")
FLOW_POD = FlowPod("patching-llama-9x2kq", "1d9d2b0e-1c59-4f0e-9d7c-6a1a3f5b7c21", "research")
LABELS = Labels(
    flow_run="5f1c2f9e-2f53-4d4e-8d0e-0c1a5b0f7a11",
    task_run="aa2f5e2c-9d1c-4f8a-b7c5-2f6f0f4d9b3e",
    stage="trials: layer 12",
    shard="shards/patching.trials/3f62e74c28abf303003f4317804bf0f1",
    holder="17-0c1a5b0f7a11",
    domain="0d3f5b7c9e1a2b4c6d8e0f1a2b3c4d5e",
    slots="place-0,place-1",
)
RUN = ShardRun(
    "s3://bucket/prefix/shards/patching.trials/3f62e74c28abf303003f4317804bf0f1/spec.json", LABELS, "cuda", 8, 16
)


def lease(count: int = 1, *, gpus: bool = True) -> Lease:
    held = places(count, 4, Line(), gpus=gpus).try_lease(count)
    assert held is not None
    return held


def body(
    run: ShardRun = RUN,
    held: Lease | None = None,
    container: dict[str, Any] | None = None,
    kubernetes: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    settings = (ContainerSettings(**container or {}), KubernetesSettings(**kubernetes or {}))
    given = {"name": "tomograph-trials-layer-12-3f62e74c-0a1b2c3d4e5f", "namespace": "research"} | more
    return job_body(run, held or lease(), IMAGE, *settings, **given)


def shard_of(job: dict[str, Any]) -> dict[str, Any]:
    [container] = job["spec"]["template"]["spec"]["containers"]
    return container


def expected(name: str) -> dict[str, Any]:
    return json.loads((RECORDINGS / f"{name}.json").read_text())


WITH_EVERYTHING: dict[str, Any] = {
    "held": lease(2),
    "container": {
        "memory": "64GiB",
        "shared_memory": "1.5GiB",
        "volumes": ["model-cache:/cache", "corpora:/data:ro", "corpora:/data-too:ro"],
    },
    "kubernetes": {
        "secrets": ["tomograph-credentials", "hub"],
        "service_account": "tomograph-shards",
        "cpu": "8",
        "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": "300"}],
    },
    "timeout_minutes": 90,
    "flow_pod": FLOW_POD,
}
ON_THE_CPU: dict[str, Any] = {
    "run": replace(RUN, device="cpu", threads=2, batch_size=None),
    "held": lease(gpus=False),
}


@pytest.mark.parametrize(
    ("given", "name"), [(WITH_EVERYTHING, "expected_job_two_gpus"), (ON_THE_CPU, "expected_job_cpu")]
)
def test_the_whole_body(given: dict[str, Any], name: str) -> None:
    assert body(**given) == expected(name)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("given", [WITH_EVERYTHING, ON_THE_CPU, {}])
def test_kubernetes_accepts_the_body(given: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(body(**given), version, strict=True)


def test_the_schema_is_strict() -> None:
    wrong = body()
    wrong["spec"]["template"]["spec"]["containers"][0]["memory"] = "64Gi"
    with pytest.raises(kubernetes_validate.ValidationError, match="memory"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_a_gpu_is_asked_for_and_promised_for_each_place() -> None:
    for count in (1, 2, 4):
        shard = shard_of(body(held=lease(count), kubernetes={"gpu_resource": "amd.com/gpu"}))
        assert shard["resources"]["limits"] == shard["resources"]["limits"] | {"amd.com/gpu": str(count)}
        assert {"name": "TOMOGRAPH_GPUS", "value": f"count:{count}"} in shard["env"]


def test_a_shard_on_the_cpu_gets_no_gpu_whatever_its_image_asks_for() -> None:
    shard = shard_of(body(**ON_THE_CPU))
    assert shard["resources"]["limits"] == {}
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in shard["env"]


def test_every_label_is_there_and_those_that_fit_can_be_selected() -> None:
    metadata = body(flow_pod=FLOW_POD)["metadata"]
    assert Labels.of_labels(metadata["annotations"]) == LABELS
    assert metadata["labels"]["tomograph.flow_run"] == LABELS.flow_run
    assert not {"tomograph.shard", "tomograph.stage", "tomograph.slots"} & metadata["labels"].keys()


def test_the_flows_pod_owns_what_is_in_its_namespace_only() -> None:
    assert "ownerReferences" in body(flow_pod=FLOW_POD)["metadata"]
    assert "ownerReferences" not in body(flow_pod=replace(FLOW_POD, namespace="elsewhere"))["metadata"]
    assert "ownerReferences" not in body()["metadata"]


def test_the_flows_pod_is_known_from_its_environment() -> None:
    known = {"TOMOGRAPH_POD_NAME": "flow-1", "TOMOGRAPH_POD_UID": "u-1"}
    assert FlowPod.of_environment("research", known) == FlowPod("flow-1", "u-1", "research")
    assert FlowPod.of_environment("x", {**known, "TOMOGRAPH_POD_NAMESPACE": "y"}) == FlowPod("flow-1", "u-1", "y")
    assert FlowPod.of_environment("research", {"TOMOGRAPH_POD_NAME": "flow-1"}) is None
    assert FlowPod.of_environment(None, known) is None


def test_nothing_of_the_environment_gets_into_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "TOMOGRAPH_STORE", "PREFECT_API_KEY"):
        monkeypatch.setenv(name, "not-for-the-cluster")
    assert "not-for-the-cluster" not in json.dumps(body(**WITH_EVERYTHING))


@pytest.mark.parametrize("image", ["tomograph-torch:0.1.0-cuda", "registry.example/torch@sha256:5555", "torch@latest"])
def test_an_image_without_a_digest_is_refused(image: str) -> None:
    with pytest.raises(BadInput, match="by digest") as refused:
        job_body(
            RUN, lease(), image, ContainerSettings(), KubernetesSettings(), name="tomograph-1", namespace="research"
        )
    assert refused.value.field == "execution.container.images.torch"
    assert "TOMOGRAPH_TORCH_IMAGE" in refused.value.remedy


@pytest.mark.parametrize("volumes", [[], ["runs:/srv/other"], ["runs:/srv/runs:ro"], ["runs:/srv/runs-too"]])
def test_a_store_on_this_machine_is_refused(volumes: list[str]) -> None:
    local = replace(RUN, spec_url="/srv/runs/store/shards/patching.trials/3f62e74c/spec.json")
    with pytest.raises(BadInput, match="which the pods of a cluster don't see") as refused:
        body(local, container={"volumes": volumes})
    assert (refused.value.field, refused.value.value) == ("store", "/srv/runs/store")


def test_a_store_on_a_claim_is_fine() -> None:
    local = replace(RUN, spec_url="/srv/runs/store/shards/patching.trials/3f62e74c/spec.json")
    mounts = shard_of(body(local, container={"volumes": ["runs:/srv/runs"]}))["volumeMounts"]
    assert {"name": "volume-0", "mountPath": "/srv/runs"} in mounts


@pytest.mark.parametrize(
    ("container", "kubernetes", "field"),
    [
        ({"volumes": ["/srv/models:/models"]}, {}, "execution.container.volumes"),
        ({}, {"tolerations": [{"key": "gpu", "tolerationSeconds": "soon"}]}, "execution.kubernetes.tolerations"),
    ],
)
def test_settings_that_describe_no_job_are_refused(
    container: dict[str, Any], kubernetes: dict[str, Any], field: str
) -> None:
    with pytest.raises(BadInput) as refused:
        body(container=container, kubernetes=kubernetes)
    assert refused.value.field == field


def test_a_volume_in_the_place_of_an_own_one_replaces_it() -> None:
    job = body(container={"volumes": ["scratch:/tmp", "model-cache:/cache"]})
    assert {one["name"] for one in job["spec"]["template"]["spec"]["volumes"]} == {"shm", "volume-0", "volume-1"}


@pytest.mark.parametrize("stage", ["trials", "Trials: Layer 12 (of 40)", "x" * 200, "…", "-a-"])
def test_names_are_names_to_kubernetes(stage: str) -> None:
    name = job_name(replace(RUN, labels=replace(LABELS, stage=stage)), "0a1b2c3d4e5f")
    assert name.startswith("tomograph-")
    assert name.endswith("-3f62e74c-0a1b2c3d4e5f")
    assert len(f"{name}-x7k2p") <= 63
    assert all(
        part and part.isascii() and part.isalnum() and part.islower() for part in name.split("-") if part[:1].isalpha()
    )
    assert "--" not in name


def test_recorded_objects_have_the_form_of_the_api() -> None:
    """Of the states a pod may be in, too: what the tests of the launcher stand on."""
    for path in sorted((RECORDINGS / "statuses").glob("*.json")):
        pod = {"apiVersion": "v1", "kind": "Pod", **expected("pod"), "status": json.loads(path.read_text())}
        pod["spec"]["containers"] = body()["spec"]["template"]["spec"]["containers"]
        kubernetes_validate.validate(pod, "1.34", strict=True)
    for name, status in expected("job_finished").items():
        assert name in ("complete", "failed", "active")
        kubernetes_validate.validate(body() | {"status": status}, "1.34", strict=True)
