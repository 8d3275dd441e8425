"""Shards as Jobs of a Kubernetes cluster, whose scheduler is the queue and leases the GPUs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from flows.launchers.base import Exit, Labels, Launcher, ShardRun
from flows.launchers.images import image_of
from flows.launchers.kubernetes.cluster import Cluster
from flows.launchers.kubernetes.follow import Follower
from flows.launchers.kubernetes.job import (
    FLOW_POD,
    FLOW_POD_NAMESPACE,
    FLOW_POD_UID,
    STOP_GRACE_SECONDS,
    FlowPod,
    check_image,
    cpus,
    job_body,
    job_name,
    selector,
)
from flows.launchers.kubernetes.places import Line, places
from flows.launchers.kubernetes.state import Object, is_finished
from flows.launchers.kubernetes.threads import from_thread, in_thread
from flows.launchers.settings import ContainerSettings, KubernetesSettings
from flows.slots import CORES_PER_CPU_SLOT, Lease, SlotPool
from tasks.errors import BadInput

PLACES = 8
THREADS_PER_GPU = 4


@dataclass
class ShardJob:
    """A shard's Job: its name, and who follows it."""

    name: str
    follower: Follower


class KubernetesLauncher(Launcher[ShardJob]):
    """One Job for each attempt at a shard.

    The cluster that the flow runs in, else that of the kubeconfig, is looked for when it is needed first. Jobs belong
    to the pod of their flow, if it runs in one and knows which (TOMOGRAPH_POD_NAME, TOMOGRAPH_POD_UID,
    TOMOGRAPH_POD_NAMESPACE), so that the cluster removes them with it.
    """

    leases_this_host = False
    keeps_time = True

    def __init__(
        self, container: ContainerSettings, settings: KubernetesSettings, timeout_minutes: float | None = None
    ) -> None:
        self._container = container
        self._settings = settings
        self._timeout_minutes = timeout_minutes
        self._line = Line()
        self._connected: Cluster | None = None
        self._connecting = threading.Lock()

    def slots(self, *, device: str, count: int | None, threads: int | None) -> SlotPool:
        """Places in line: ``auto`` means GPUs, since a cluster that has none can't be told from a busy one."""
        gpus = device != "cpu"
        share = THREADS_PER_GPU if gpus else CORES_PER_CPU_SLOT
        if self._settings.cpu:
            share = max(1, int(cpus(self._settings.cpu)))
        return places(count or PLACES, threads or share, self._line, gpus=gpus)

    def check_environment(self, environment: str, device: str) -> None:
        check_image(image_of(environment, device, self._container.images), environment)

    async def start(self, run: ShardRun, lease: Lease) -> ShardJob:
        name = job_name(run, uuid.uuid4().hex[:12])
        cancelled = threading.Event()
        try:
            return await in_thread(partial(self._start, run, lease, name, cancelled))
        except asyncio.CancelledError:
            cancelled.set()
            if self._connected:  # whichever is later, this or the creation, the Job is deleted
                delete = partial(self._connected.delete_job, name, STOP_GRACE_SECONDS)
                threading.Thread(target=_quietly, args=(delete,), daemon=True).start()
            raise

    async def follow(self, handle: ShardJob) -> AsyncIterator[dict[str, Any]]:
        async for event in from_thread(handle.follower.events()):
            yield event

    async def wait(self, handle: ShardJob) -> Exit:
        if handle.follower.end is None:
            raise RuntimeError(f"{handle.name} has not been followed to its end")
        return handle.follower.end

    async def stop(self, handle: ShardJob) -> None:
        handle.follower.give_up()
        if not handle.follower.settled:
            await in_thread(partial(self._cluster.delete_job, handle.name, STOP_GRACE_SECONDS))
            handle.follower.settled = True

    async def sweep(self, flow_run: str | None = None) -> list[str]:
        return await in_thread(partial(self._sweep, flow_run))

    def _start(self, run: ShardRun, lease: Lease, name: str, cancelled: threading.Event) -> ShardJob:
        cluster = self._cluster
        if self._settings.cpu:  # more threads than processors slow each other down
            run = replace(run, threads=min(run.threads, max(1, int(cpus(self._settings.cpu)))))
        body = job_body(
            run,
            lease,
            image_of(run.environment, run.device, self._container.images),
            self._container,
            self._settings,
            name=name,
            namespace=cluster.namespace,
            timeout_minutes=self._timeout_minutes,
            flow_pod=FlowPod.of_environment(cluster.home),
        )
        self._clear(run.labels)
        cluster.create_job(body)
        if cancelled.is_set():
            cluster.delete_job(name, STOP_GRACE_SECONDS)
        return ShardJob(name, Follower(cluster, name))

    def _clear(self, labels: Labels) -> None:
        """Stop earlier attempts at the shard: one whose end could not be seen may still run."""
        for job in self._cluster.jobs(selector(flow_run=labels.flow_run, task_run=labels.task_run)):
            earlier = _labels(job)
            if earlier and earlier.shard == labels.shard and not is_finished(job):
                self._cluster.delete_job(job["metadata"]["name"], STOP_GRACE_SECONDS)

    def _sweep(self, flow_run: str | None) -> list[str]:
        cluster = self._cluster
        living: dict[tuple[str, str, str], bool] = {}
        stopped = set()
        for job in cluster.jobs(selector() if flow_run is None else selector(flow_run=flow_run)):
            labels = _labels(job)
            if labels is None or is_finished(job):
                continue
            if labels.found_by(flow_run) or (flow_run is None and self._lost_its_pod(job, living)):
                cluster.delete_job(job["metadata"]["name"], STOP_GRACE_SECONDS)
                stopped.add(labels.shard)
        return sorted(stopped)

    def _lost_its_pod(self, job: Object, living: dict[tuple[str, str, str], bool]) -> bool:
        """Whether the flow that created the Job ran in a pod that is no more. ``living`` is what is known of pods."""
        annotations = job["metadata"].get("annotations") or {}
        if not all(name in annotations for name in (FLOW_POD, FLOW_POD_UID, FLOW_POD_NAMESPACE)):
            return False
        key = (annotations[FLOW_POD], annotations[FLOW_POD_NAMESPACE], annotations[FLOW_POD_UID])
        if key not in living:
            living[key] = self._lives(*key)
        return not living[key]

    def _lives(self, name: str, namespace: str, uid: str) -> bool:
        if (name, uid) == (os.environ.get("TOMOGRAPH_POD_NAME"), os.environ.get("TOMOGRAPH_POD_UID")):
            return True
        try:
            pod = self._cluster.pod(name, namespace)
        except BadInput:  # a namespace that is not ours to look into
            return True
        return bool(pod and pod["metadata"]["uid"] == uid and pod["status"].get("phase") not in ("Succeeded", "Failed"))

    @property
    def _cluster(self) -> Cluster:
        with self._connecting:
            if self._connected is None:
                self._connected = Cluster.connect(self._settings.namespace)
            return self._connected


def _labels(job: Object) -> Labels | None:
    return Labels.of_labels(job["metadata"].get("annotations") or {})


def _quietly(function: Any) -> None:
    """Nobody waits for this; what it leaves undone, a sweep does."""
    with contextlib.suppress(Exception):
        function()
