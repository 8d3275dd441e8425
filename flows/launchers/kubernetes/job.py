"""The Job of a shard, as the body of the request that creates it (``batch/v1``)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from flows.launchers.base import COMMAND, Labels, ShardRun
from flows.launchers.images import variable
from flows.launchers.settings import ContainerSettings, KubernetesSettings, Volume, size_in_bytes
from flows.slots import Lease
from tasks.errors import BadInput
from tasks.gpus import COUNT, PROMISE

CONTAINER = "shard"
MANAGED_BY = ("app.kubernetes.io/managed-by", "tomograph")
FLOW_POD = "tomograph.flow_pod"
FLOW_POD_UID = "tomograph.flow_pod_uid"
FLOW_POD_NAMESPACE = "tomograph.flow_pod_namespace"
USER = 10001
STOP_GRACE_SECONDS = 5
"""A shard that is told to end does within three."""
KEPT_SECONDS = 600
"""How long a finished Job and its log stay, for people to look at."""
LONGEST_NAME = 63
SHORT_HASH = 8

_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_BY_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
_UNITS = (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))


@dataclass(frozen=True)
class FlowPod:
    """The pod that the flow runs in. Its manifest passes these on to it (``metadata.name`` and so on)."""

    name: str
    uid: str
    namespace: str

    @classmethod
    def of_environment(cls, namespace: str | None, environ: Mapping[str, str] = os.environ) -> FlowPod | None:
        """None where the flow runs in no pod, or its manifest doesn't say which.

        ``namespace`` is the flow's own, for a manifest that doesn't pass that on.
        """
        name, uid = environ.get("TOMOGRAPH_POD_NAME"), environ.get("TOMOGRAPH_POD_UID")
        namespace = environ.get("TOMOGRAPH_POD_NAMESPACE") or namespace
        return cls(name, uid, namespace) if name and uid and namespace else None


def job_name(run: ShardRun, attempt: str) -> str:
    """A name for people, unlike that of any other attempt: "tomograph-trials-1f2e3d4c-9a8b7c6d5e4f"."""
    shard = PurePosixPath(run.labels.shard).name[:SHORT_HASH].lower()
    end = re.sub(r"[^a-z0-9]+", "-", f"{shard}-{attempt}").strip("-")
    stage = re.sub(r"[^a-z0-9]+", "-", run.labels.stage.lower()).strip("-")
    room = LONGEST_NAME - len("tomograph--") - len(end) - len("-00000")  # the pod's suffix
    return "-".join(filter(None, ("tomograph", stage[:room].strip("-"), end)))


def selector(**labels: str) -> str:
    """Selects the Jobs of shards, those with these labels: ``flow_run``, ``task_run`` and so on."""
    wanted = [MANAGED_BY, *((Labels.NAMESPACE + name, value) for name, value in labels.items())]
    return ",".join(f"{name}={value}" for name, value in wanted)


def job_body(
    run: ShardRun,
    lease: Lease,
    image: str,
    container: ContainerSettings,
    kubernetes: KubernetesSettings,
    *,
    name: str,
    namespace: str,
    timeout_minutes: float | None = None,
    flow_pod: FlowPod | None = None,
) -> dict[str, Any]:
    """Everything about the Job of a shard.

    Args:
        run: the attempt at the shard.
        lease: its places; each of a GPU's asks for one GPU.
        image: reference by digest.
        container: settings of containers.
        kubernetes: settings of pods.
        name: of the Job, see ``job_name``.
        namespace: of the Job.
        timeout_minutes: the pod is stopped when it has been on its node for so long; time in the queue doesn't count.
        flow_pod: where the flow runs, if in a pod.

    Raises:
        BadInput: the settings don't describe a Job, or the store is one that a pod doesn't see.
    """
    check_image(image, run.environment)
    volumes = [Volume.of(text) for text in container.volumes]
    _check_store(run.store, volumes)
    sources, mounts = _volumes(volumes, container.shared_memory)
    gpus = len(lease.slots) if lease.device == "cuda" else 0
    annotations = run.labels.as_labels() | _flow_pod_annotations(flow_pod)
    # A path or a list is no value of a label; annotations hold everything.
    labels = dict([MANAGED_BY]) | {name: value for name, value in annotations.items() if _LABEL_VALUE.fullmatch(value)}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": STOP_GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",  # else every file of a large cache is visited at each start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": list(COMMAND),
                "args": run.arguments,
                "env": [{"name": name, "value": value} for name, value in sorted(_variables(run, image, gpus).items())],
                "envFrom": [{"secretRef": {"name": secret, "optional": False}} for secret in kubernetes.secrets],
                "resources": _resources(run, container, kubernetes, gpus),
                "volumeMounts": mounts,
                "securityContext": {
                    "readOnlyRootFilesystem": True,
                    "allowPrivilegeEscalation": False,
                    "privileged": False,
                    "capabilities": {"drop": ["ALL"]},
                },
                # Where the log can't be read any more, the end of it is in the container's state.
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }
        ],
        "volumes": sources,
    }
    if timeout_minutes is not None:
        pod["activeDeadlineSeconds"] = max(1, round(timeout_minutes * 60))
    if kubernetes.service_account:
        pod["serviceAccountName"] = kubernetes.service_account
    if kubernetes.node_selector:
        pod["nodeSelector"] = kubernetes.node_selector
    if kubernetes.tolerations:
        pod["tolerations"] = [_toleration(one) for one in kubernetes.tolerations]
    metadata = {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations}
    if flow_pod and flow_pod.namespace == namespace:  # an owner elsewhere counts as one that is gone
        metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", "name": flow_pod.name, "uid": flow_pod.uid}]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",  # else one that is being deleted has a successor beside it
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod},
        },
    }


def check_image(image: str, environment: str) -> None:
    """Refuse a reference that may mean another image on another node or tomorrow.

    Raises:
        BadInput: it has no digest.
    """
    if _BY_DIGEST.fullmatch(image) is None:
        problem = "names no image for good: a cluster gets images from a registry, by digest"
        remedy = f"push the image and give NAME@sha256:..., here or in {variable(environment)}"
        raise BadInput(f"execution.container.images.{environment}", image, problem, remedy)


def cpus(text: str) -> float:
    """ "8" or "500m" as a number of CPUs.

    Raises:
        BadInput: it is none.
    """
    try:
        number = float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise BadInput("execution.kubernetes.cpu", text, "is no number of CPUs", "write 8 or 500m")
    return number


def _variables(run: ShardRun, image: str, gpus: int) -> dict[str, str]:
    variables = {"OMP_NUM_THREADS": str(run.threads), "TOMOGRAPH_IMAGE": image}
    if gpus:
        return variables | {PROMISE: f"{COUNT}{gpus}"}
    # An image made for CUDA asks for all GPUs of the node, and some nodes' container runtime listens to that.
    return variables | {"NVIDIA_VISIBLE_DEVICES": "void"}


def _resources(
    run: ShardRun, container: ContainerSettings, kubernetes: KubernetesSettings, gpus: int
) -> dict[str, dict[str, str]]:
    """Memory is asked for in full, so that the node has it; processors may be borrowed."""
    requests, limits = {"cpu": kubernetes.cpu or str(run.threads)}, {}
    if container.memory:
        requests["memory"] = limits["memory"] = _quantity(container.memory)
    if gpus:
        requests[kubernetes.gpu_resource] = limits[kubernetes.gpu_resource] = str(gpus)
    return {"requests": requests, "limits": limits}


def _volumes(volumes: Sequence[Volume], shared_memory: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes of the pod, and where its container sees them."""
    in_memory = {"medium": "Memory", "sizeLimit": _quantity(shared_memory)}
    own = {"/dev/shm": ("shm", in_memory), "/tmp": ("tmp", {}), "/cache": ("cache", {})}
    sources, mounts = [], []
    for path, (name, empty) in own.items():
        if path not in {volume.path for volume in volumes}:
            sources.append({"name": name, "emptyDir": empty})
            mounts.append({"name": name, "mountPath": path})
    named: dict[tuple[str, bool], str] = {}
    for volume in volumes:
        key = (_claim(volume.source), volume.read_only)
        if key not in named:
            named[key] = f"volume-{len(named)}"
            claim = {"claimName": volume.source} | ({"readOnly": True} if volume.read_only else {})
            sources.append({"name": named[key], "persistentVolumeClaim": claim})
        mounts.append({"name": named[key], "mountPath": volume.path} | ({"readOnly": True} if volume.read_only else {}))
    return sources, mounts


def _claim(source: str) -> str:
    if _CLAIM.fullmatch(source) is None:
        problem = "is no persistent volume claim: a pod may run on any node, so a host's folder means nothing to it"
        raise BadInput("execution.container.volumes", source, problem, "write CLAIM:/path, with the name of a claim")
    return source


def _check_store(store: str, volumes: Sequence[Volume]) -> None:
    if "://" in store:
        return
    here = PurePosixPath(store)
    if not any(here.is_relative_to(volume.path) and not volume.read_only for volume in volumes):
        problem = "is a folder of this machine, which the pods of a cluster don't see"
        remedy = (
            "use an object store, such as s3://bucket/prefix, or mount a claim there that the flow sees at the same "
            f"place: execution.container.volumes: [CLAIM:{store}]"
        )
        raise BadInput("store", store, problem, remedy)


def _flow_pod_annotations(pod: FlowPod | None) -> dict[str, str]:
    if pod is None:
        return {}
    return {FLOW_POD: pod.name, FLOW_POD_UID: pod.uid, FLOW_POD_NAMESPACE: pod.namespace}


def _toleration(given: Mapping[str, str]) -> dict[str, Any]:
    seconds = given.get("tolerationSeconds")
    if seconds is None:
        return dict(given)
    if not re.fullmatch(r"\d+", seconds):
        problem = "tolerationSeconds is no whole number"
        raise BadInput("execution.kubernetes.tolerations", dict(given), problem, "write a number of seconds")
    return {**given, "tolerationSeconds": int(seconds)}


def _quantity(size: str) -> str:
    """ "16GiB" as Kubernetes writes it: "16Gi"."""
    number = size_in_bytes(size)
    for unit, factor in _UNITS:
        if number % factor == 0:
            return f"{number // factor}{unit}"
    return str(number)
