"""The work pool of a cluster: prefect-kubernetes itself makes the Job of a real flow run from its template."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import kubernetes_validate
import pytest
from prefect.client.orchestration import get_client
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration
from rich.console import Console

from flows.deploy import deploy
from flows.pools import work_pools

POOL = "tomograph-kubernetes"
IMAGE = f"registry.example/tomograph-flows@sha256:{'a' * 64}"
DEFAULTS = {
    "env": {"PREFECT_HOME": "/tmp/prefect", "TOMOGRAPH_RUNTIME_DIR": "/run/tomograph"},
    "namespace": "tomograph",
    "service_account_name": "tomograph-flows",
    "finished_job_ttl": 86400,
    "cpu_request": "250m",
    "memory_request": "512Mi",
    "memory_limit": "2Gi",
}


def test_the_variables_are_those_of_prefect_kubernetes_but_for_defaults() -> None:
    expected = KubernetesWorker.get_default_base_job_template()["variables"]
    for name, value in DEFAULTS.items():
        expected["properties"][name]["default"] = value
    assert work_pools()[POOL]["base_job_template"]["variables"] == expected


def test_the_configuration_is_that_of_prefect_kubernetes_but_for_the_job() -> None:
    expected = KubernetesWorker.get_default_base_job_template()["job_configuration"]
    ours = work_pools()[POOL]["base_job_template"]["job_configuration"]
    assert {**ours, "job_manifest": None} == {**expected, "job_manifest": None}


@pytest.fixture(scope="module")
def deployed(prefect_server: str) -> str:
    asyncio.run(deploy(Console(file=io.StringIO()), [POOL], image=IMAGE, store="s3://bucket/studies"))
    return prefect_server


def job_of_run(**job_variables: Any) -> dict[str, Any]:
    """The Job that a worker would make for a run of patching/cluster."""

    async def render() -> dict[str, Any]:
        async with get_client() as client:
            deployment = await client.read_deployment_by_name("patching/cluster")
            run = await client.create_flow_run_from_deployment(
                deployment.id, name="a-run", job_variables=job_variables or None
            )
            configuration = await KubernetesWorkerJobConfiguration.resolve_for_flow_run(
                run, client=client, work_pool=await client.read_work_pool(POOL), worker_name="a-worker"
            )
            return configuration.job_manifest

    return asyncio.run(render())


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    [container] = job["spec"]["template"]["spec"]["containers"]
    return container


def test_the_whole_job(deployed: str) -> None:
    job = job_of_run()
    container = container_of(job)
    labels = job["metadata"].pop("labels")
    assert job["spec"]["template"]["metadata"].pop("labels") == labels
    assert labels["prefect.io/deployment-name"] == "cluster"
    given = {one["name"]: one.get("value") for one in container["env"]}
    assert given["PREFECT_API_URL"] == deployed
    passed_on = ("PREFECT_API_", "PREFECT_SERVER_", "PREFECT__")
    container["env"] = [one for one in container["env"] if not one["name"].startswith(passed_on)]
    assert job == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": "a-run-", "namespace": "tomograph", "annotations": {}},
        "spec": {
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": 86400,
            "template": {
                "metadata": {"annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}},
                "spec": {
                    "completions": 1,
                    "parallelism": 1,
                    "restartPolicy": "Never",
                    "serviceAccountName": "tomograph-flows",
                    "enableServiceLinks": False,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 10001,
                        "runAsGroup": 10001,
                        "fsGroup": 10001,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [
                        {
                            "name": "prefect-job",
                            "image": IMAGE,
                            "imagePullPolicy": "IfNotPresent",
                            "args": ["prefect", "flow-run", "execute"],
                            "env": [
                                {"name": "PREFECT_HOME", "value": "/tmp/prefect"},
                                {"name": "TOMOGRAPH_RUNTIME_DIR", "value": "/run/tomograph"},
                                {"name": "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR", "value": "reschedule"},
                                field_of_pod("TOMOGRAPH_POD_NAME", "metadata.name"),
                                field_of_pod("TOMOGRAPH_POD_UID", "metadata.uid"),
                                field_of_pod("TOMOGRAPH_POD_NAMESPACE", "metadata.namespace"),
                            ],
                            "envFrom": [
                                {"configMapRef": {"name": "tomograph-config", "optional": True}},
                                {"secretRef": {"name": "tomograph-credentials", "optional": True}},
                            ],
                            "resources": {
                                "limits": {"memory": "2Gi"},
                                "requests": {"cpu": "250m", "memory": "512Mi"},
                            },
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "readOnlyRootFilesystem": True,
                                "capabilities": {"drop": ["ALL"]},
                            },
                            "volumeMounts": [
                                {"name": "tmp", "mountPath": "/tmp"},
                                {"name": "cache", "mountPath": "/cache"},
                                {"name": "run", "mountPath": "/run/tomograph"},
                            ],
                        }
                    ],
                    "volumes": [
                        {"name": "tmp", "emptyDir": {}},
                        {"name": "cache", "emptyDir": {}},
                        {"name": "run", "emptyDir": {}},
                    ],
                },
            },
        },
    }


def field_of_pod(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_the_job_is_valid_to_kubernetes(deployed: str, version: str) -> None:
    job = job_of_run()
    kubernetes_validate.validate(job, version)
    for name in ("completions", "parallelism"):  # Prefect wants them where Kubernetes ignores them
        del job["spec"]["template"]["spec"][name]
    kubernetes_validate.validate(job, version, strict=True)


def test_job_variables_win(deployed: str) -> None:
    job = job_of_run(
        image="mine:1", namespace="elsewhere", cpu_limit="2", env={"TOMOGRAPH_RUNTIME_DIR": "/shared", "ONE": "1"}
    )
    container = container_of(job)
    values = {one["name"]: one.get("value") for one in container["env"]}
    assert (container["image"], job["metadata"]["namespace"]) == ("mine:1", "elsewhere")
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "2Gi"}
    assert (values["TOMOGRAPH_RUNTIME_DIR"], values["ONE"]) == ("/shared", "1")
    assert values["PREFECT_HOME"] == "/tmp/prefect"
    kubernetes_validate.validate(job, "1.37")
