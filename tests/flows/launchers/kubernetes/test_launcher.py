"""The kubernetes launcher: the official client against a recorded API, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.holders import domain, holder
from flows.launchers.base import Exit, Labels, ShardBroken, ShardError, ShardLost, ShardRejected, ShardRun
from flows.launchers.kubernetes import cluster as kubernetes_cluster
from flows.launchers.kubernetes import follow as kubernetes_follow
from flows.launchers.kubernetes import state as kubernetes_state
from flows.launchers.kubernetes.job import FLOW_POD, FLOW_POD_NAMESPACE, FLOW_POD_UID, MANAGED_BY
from flows.launchers.kubernetes.launcher import KubernetesLauncher, ShardJob
from flows.launchers.settings import ContainerSettings, KubernetesSettings
from tasks.artifacts.catalog import store_spec
from tasks.artifacts.manifest import read_manifest
from tasks.artifacts.store import Store
from tasks.errors import BadInput, TransientError
from tests.flows.launchers.kubernetes.api import (
    NAMESPACE,
    TOKEN,
    KubernetesApi,
    Line,
    Step,
    make_certificate,
    recording,
)
from tests.flows.processes import wait_until
from tests.toy_tasks import KINDS, SquaresParams

[SQUARES] = [kind for kind in KINDS if kind.name == "toy.squares"]
IMAGE = "registry.example/tomograph-torch:0.1.0-cuda@sha256:" + "5" * 64
SHARD = "shards/toy.squares/3f62e74c28abf303003f4317804bf0f1"
EVENTS = [
    {"event": "started", "task": "toy.squares", "spec_hash": "3f62e74c", "device": "cuda"},
    {"event": "log", "message": "info: device cuda"},
    {"event": "progress", "done": 1, "total": 3, "unit": "chunks", "message": ""},
    {"event": "progress", "done": 3, "total": 3, "unit": "chunks", "message": ""},
    {"event": "finished", "shard": SHARD, "digest": "9a8b", "counts": {"numbers": 10}, "reused": False},
]
FAILED = {"event": "failed", "kind": "bad_input", "field": "params.fail", "message": "params.fail = 'x': no"}
Act = Callable[[KubernetesLauncher, ShardJob], Awaitable[object]]


def lines(*events: dict[str, Any] | str, gates: Sequence[threading.Event | None] = ()) -> list[Line]:
    """A log with one of these every 0.3 seconds."""
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    held = [*gates, *[None] * (len(texts) - len(gates))]
    return [Line(0.3 * i, text, gate) for i, (text, gate) in enumerate(zip(texts, held, strict=True))]


def runs(*events: dict[str, Any] | str, **more: Any) -> Step:
    return Step("running", log=lines(*(events or EVENTS)), **more)


SUCCESS = [Step("pending"), Step("creating"), runs(), Step("succeeded")]


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster but the test's, credentials that belong nowhere, and little patience."""
    for name in ("KUBERNETES_SERVICE_HOST", "TOMOGRAPH_POD_NAME", "TOMOGRAPH_POD_UID", "TOMOGRAPH_POD_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PREFECT_API_KEY", "AZURE_STORAGE_KEY"):
        monkeypatch.setenv(name, f"secret-of-{name}")
    monkeypatch.setattr(kubernetes_cluster, "FIRST_PATIENCE", 1.0)
    monkeypatch.setattr(kubernetes_cluster, "LONGEST_WAIT", 0.2)
    monkeypatch.setattr(kubernetes_follow, "CHANGE_SECONDS", 1.0)
    monkeypatch.setattr(kubernetes_follow, "LOG_PATIENCE", 1.0)
    monkeypatch.setattr(kubernetes_state, "IMAGE_PATIENCE", 0.5)
    monkeypatch.setattr(kubernetes_state, "CONFIGURATION_PATIENCE", 0.5)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., KubernetesApi]]:
    """Starts an API whose pods do what the given steps say, and names it in the kubeconfig."""
    with contextlib.ExitStack() as stack:

        def start(*steps: Step, **more: Any) -> KubernetesApi:
            api = stack.enter_context(KubernetesApi(steps, **more).running())
            monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "kubeconfig")))
            monkeypatch.setattr(
                "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
            )
            started.append(api)
            return api

        started: list[KubernetesApi] = []
        yield start
        for api in started:  # in every test: no credential is in any request
            for request in api.requests:
                assert "secret-of-" not in repr(request)


def launcher(timeout_minutes: float | None = None, volumes: Sequence[str] = (), **settings: Any) -> KubernetesLauncher:
    container = ContainerSettings(images={"torch": IMAGE}, memory="64GiB", volumes=list(volumes))
    return KubernetesLauncher(container, KubernetesSettings(**settings), timeout_minutes)


def labels(**given: str) -> Labels:
    known = {"flow_run": "flow-run-1", "task_run": "task-run-1", "stage": "squares", "shard": SHARD}
    return Labels(**{**known, "holder": holder(), "domain": domain(), "slots": "place-0"} | given)


def shard_run(**given: str) -> ShardRun:
    return ShardRun(f"s3://bucket/prefix/{SHARD}/spec.json", labels(**given), "cuda", 4)


async def started(by: KubernetesLauncher, run: ShardRun | None = None, gpus: int = 1) -> ShardJob:
    with await by.slots(device="auto", count=None, threads=None).lease(gpus) as lease:
        return await by.start(run or shard_run(), lease)


def finish(by: KubernetesLauncher | None = None, run: ShardRun | None = None) -> tuple[list[dict[str, Any]], Exit]:
    """Run a shard to its end, as a flow does."""

    async def main() -> tuple[list[dict[str, Any]], Exit]:
        using = by or launcher()
        handle = await started(using, run)
        try:
            return [event async for event in using.follow(handle)], await using.wait(handle)
        finally:
            await using.stop(handle)

    return asyncio.run(asyncio.wait_for(main(), 60))


def error_of(end: Exit) -> ShardError:
    error = end.error()
    assert error is not None
    return error


def said(events: list[dict[str, Any]]) -> str:
    return "\n".join(event["message"] for event in events if event["event"] == "log")


def own(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the shard said itself."""
    ours = ("runs in the pod", "waits for its place", "ErrImagePull", "ImagePullBackOff", "warning: ")
    return [event for event in events if not str(event.get("message")).startswith(ours)]


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


def test_events_come_live(cluster: Callable[..., KubernetesApi]) -> None:
    """And not when the shard has ended."""
    gate = threading.Event()
    cluster(Step("running", log=lines(*EVENTS, gates=[None, None, None, gate])), Step("succeeded"))

    async def main() -> None:
        using = launcher()
        handle = await started(using)
        async for event in using.follow(handle):
            if event["event"] == "progress" and event["done"] == 1:
                gate.set()
        assert gate.is_set()
        assert (await using.wait(handle)).code == 0

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        ("exit_1", ShardBroken, "ModuleNotFoundError"),
        ("exit_75", ShardLost, "met a passing fault"),
        ("oom_killed", ShardLost, "passed its memory limit of 64Gi"),
        ("killed", ShardLost, "was killed by SIGKILL"),
        ("evicted", ShardLost, "was evicted from its node: The node was low on resource: memory"),
        ("preempted", ShardLost, "was preempted"),
        ("deadline_exceeded", ShardLost, "took longer than execution.timeout_minutes"),
        ("start_error", ShardRejected, "could not be started: "),
        ("admission_error", ShardLost, "no healthy devices"),
    ],
)
def test_ends(cluster: Callable[..., KubernetesApi], status: str, kind: type[ShardError], says: str) -> None:
    cluster(Step("pending"), Step("running", log=[]), Step(status))
    error = error_of(finish()[1])
    assert type(error) is kind
    assert says in str(error)


def test_bad_input(cluster: Callable[..., KubernetesApi]) -> None:
    cluster(runs(EVENTS[0], FAILED), Step("exit_2"))
    events, end = finish()
    assert events[-1] == FAILED
    error = error_of(end)
    assert isinstance(error, ShardRejected)
    assert error.field == "params.fail"
    assert "refused its input: params.fail = 'x': no" in str(error)


def test_last_words_come_from_the_log(cluster: Callable[..., KubernetesApi]) -> None:
    cluster(runs(EVENTS[0], "Fatal Python error: Segmentation fault"), Step("killed"))
    assert "Fatal Python error: Segmentation fault" in str(error_of(finish()[1]))


def test_unschedulable_then_scheduled(cluster: Callable[..., KubernetesApi]) -> None:
    cluster(Step("pending"), *[Step("unschedulable")] * 3, Step("creating"), runs(), Step("succeeded"))
    events, end = finish()
    assert end.code == 0
    assert own(events) == EVENTS
    assert said(events).count("4 Insufficient nvidia.com/gpu") == 1, "it is said once"


@pytest.mark.parametrize(
    ("statuses", "says"),
    [
        (["err_image_pull", "image_pull_back_off"], "could not be started: ErrImagePull: .*not found; correct"),
        (["secret_missing"], 'tomograph-credentials" not found; create what it lacks, or correct execution.kubernetes'),
        (["invalid_image_name"], "repository name must be lowercase"),
    ],
)
def test_what_never_starts_is_refused(cluster: Callable[..., KubernetesApi], statuses: list[str], says: str) -> None:
    api = cluster(Step("creating"), *(Step(status) for status in statuses))
    events, end = finish()
    error = error_of(end)
    assert isinstance(error, ShardRejected)
    with pytest.raises(ShardRejected, match=says):
        raise error
    assert str(error).split(": ")[1] in said(events), "it is said before the patience with it is over"
    assert len(api.asked("^DELETE")) == 1, "the cluster would go on trying"


def test_what_its_node_cannot_start_may_start_on_another(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster(Step("create_container_error"))
    error = error_of(finish()[1])
    assert isinstance(error, ShardLost)
    assert "could not be started: CreateContainerError: failed to reserve" in str(error)
    assert len(api.asked("^DELETE")) == 1


def test_an_image_that_is_there_at_last_is_no_failure(cluster: Callable[..., KubernetesApi]) -> None:
    cluster(Step("err_image_pull"), Step("image_pull_back_off"), runs(), Step("succeeded"))
    events, end = finish()
    assert end.code == 0
    assert "ErrImagePull" in said(events)


def test_patience_begins_anew_with_each_trouble(cluster: Callable[..., KubernetesApi]) -> None:
    trouble = Step("err_image_pull")
    cluster(trouble, *[Step("creating")] * 25, trouble, runs(), Step("succeeded"))
    assert finish()[1].code == 0


def failed_create(message: str) -> dict[str, Any]:
    return recording("event_failed_create") | {"message": message}


def test_a_job_that_gets_no_pod_says_why(
    cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_follow, "SILENCE_SECONDS", 0.0)
    monkeypatch.setattr(kubernetes_follow, "CREATION_PATIENCE", 0.5)
    api = cluster(Step(None))
    api.events = [failed_create('Error creating: pods "x-" is forbidden: violates PodSecurity "restricted:latest"')]
    events, end = finish()
    error = error_of(end)
    assert isinstance(error, ShardRejected)
    assert "violates PodSecurity" in str(error)
    assert "violates PodSecurity" in said(events)
    [uid] = {request.query["fieldSelector"] for request in api.asked("/events$")}
    assert uid == f"involvedObject.uid={recording('job')['metadata']['uid']},type=Warning"


def test_a_full_quota_is_waited_for(cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_follow, "SILENCE_SECONDS", 0.0)
    monkeypatch.setattr(kubernetes_follow, "CREATION_PATIENCE", 0.2)
    api = cluster(Step(None))
    api.events = [
        failed_create('Error creating: pods "x-" is forbidden: exceeded quota: gpus, requested: 1, limited: 8')
    ]

    async def main() -> None:
        using = launcher()
        handle = await started(using)
        following = asyncio.create_task(anext(aiter(using.follow(handle))))
        assert "exceeded quota" in (await following)["message"]
        await asyncio.sleep(2.5)
        assert handle.follower.end is None
        await using.stop(handle)

    asyncio.run(main())


def test_what_the_role_may_not_see_is_not_needed(
    cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_follow, "SILENCE_SECONDS", 0.0)
    api = cluster(*SUCCESS)
    api.fail("GET .*/events", 100, 403, "Forbidden", "events is forbidden")
    assert finish()[1].code == 0
    assert api.asked("/events$")


@pytest.mark.parametrize("cuts", [[3], [0, 0, 1], [1, 2, 3, 4], [4]])
def test_a_cut_log_is_resumed(cluster: Callable[..., KubernetesApi], cuts: list[int]) -> None:
    """Nothing is lost and nothing comes twice, however often it is cut."""
    api = cluster(Step("pending"), runs(cuts=cuts), Step("succeeded"))
    events, end = finish()
    assert end.code == 0
    assert own(events) == EVENTS
    asked = [request.query.get("sinceTime") for request in api.asked("/log$")]
    assert len(asked) > len(cuts)
    assert asked[0] is None
    if cuts[0]:
        assert asked[1] == "2026-02-11T09:30:02Z", "the second of the newest line, and two before"


def test_a_silent_connection_is_replaced(
    cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be dead: nothing says so."""
    monkeypatch.setattr(kubernetes_cluster, "QUIET_SECONDS", 0.5)
    gate = threading.Event()
    api = cluster(Step("running", log=lines(*EVENTS, gates=[None, None, gate])), Step("succeeded"))
    threading.Timer(2, gate.set).start()
    events, end = finish()
    assert end.code == 0
    assert own(events) == EVENTS
    assert len(api.asked("/log$")) > 2


def test_a_log_that_cannot_be_read_loses_no_shard(cluster: Callable[..., KubernetesApi]) -> None:
    message = 'Get "https://10.0.3.17:10250/containerLogs/research/x/shard": dial tcp 10.0.3.17:10250: i/o timeout'
    cluster(Step("running", log_fault=(500, message)), Step("succeeded", log_fault=(500, message)))
    events, end = finish()
    assert end.code == 0
    assert "warning: the end of its log can't be read: Get" in said(events)


@pytest.mark.parametrize("fault", [500, 503, 429, 504, None])
def test_hiccups_of_the_api(cluster: Callable[..., KubernetesApi], fault: int | None) -> None:
    """Wherever they happen; None is a connection that is cut before the answer."""
    api = cluster(*SUCCESS)
    for route in (r"POST .*/jobs$", r"GET .*/jobs\?", r"GET .*/pods\?", r"GET .*/log\?", r"GET .*/jobs/"):
        api.fail(route, 2, fault)
    events, end = finish()
    assert end.code == 0
    assert own(events) == EVENTS
    assert len(api.jobs) == 1


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (403, "Forbidden", 'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: 1, used: 50, limited: 50'),
        (409, "Conflict", 'Operation cannot be fulfilled on resourcequotas "jobs": the object has been modified'),
    ],
)
def test_a_quota_on_jobs_is_waited_for(
    cluster: Callable[..., KubernetesApi], status: int, reason: str, message: str
) -> None:
    api = cluster(*SUCCESS)
    api.fail("POST", 3, status, reason, message)
    assert finish()[1].code == 0
    assert len(api.asked("^POST")) == 4


def test_a_job_whose_creation_went_unanswered_is_not_created_twice(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster(*SUCCESS)
    create = api.create

    def lost(body: dict[str, Any]) -> dict[str, Any]:
        create(body)
        api.create = create  # type: ignore[method-assign]
        raise ConnectionResetError

    api.create = lost  # type: ignore[method-assign]
    assert finish()[1].code == 0
    assert len(api.asked("^POST")) == 2
    assert len(api.jobs) == 1


def test_an_api_that_stays_away_is_a_passing_fault(
    cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_cluster, "PATIENCE", 0.5)
    api = cluster(*SUCCESS)
    api.fail(
        r"GET .*/pods(\?|$)", 10_000, 503, "ServiceUnavailable", "the server is currently unable to handle the request"
    )
    with pytest.raises(TransientError, match="unable to handle the request"):
        finish()
    assert len(api.asked("^DELETE")) == 1


@pytest.mark.parametrize("fault", [410, 500, None])
def test_a_watch_that_fails_is_no_matter(cluster: Callable[..., KubernetesApi], fault: int | None) -> None:
    """Such as one from a version that the API no longer knows."""
    api = cluster(*SUCCESS)
    api.fail(r"GET .*/pods\?.*watch=true", 3, fault, "Expired", "too old resource version: 1000 (2000)")
    events, end = finish()
    assert end.code == 0
    assert own(events) == EVENTS
    assert api.faults[0].times < 3


def test_a_deleted_job_is_lost(cluster: Callable[..., KubernetesApi]) -> None:
    gate = threading.Event()
    api = cluster(Step("running", log=lines(*EVENTS, gates=[None, gate])))

    async def main() -> Exit:
        using = launcher()
        handle = await started(using)
        async for event in using.follow(handle):
            if event["event"] == "started":
                api.delete(handle.name)
        return await using.wait(handle)

    error = error_of(asyncio.run(asyncio.wait_for(main(), 20)))
    assert isinstance(error, ShardLost)
    assert "was deleted" in str(error)


@pytest.mark.parametrize(
    ("job", "says"), [("gone", "its job was deleted"), ("failed", "its pod is gone: Job has reached")]
)
def test_a_pod_that_is_gone(cluster: Callable[..., KubernetesApi], job: str, says: str) -> None:
    cluster(runs(*EVENTS[:2]), Step(None, job=job))
    error = error_of(finish()[1])
    assert isinstance(error, ShardLost)
    assert says in str(error)


def test_a_pod_that_was_removed_after_its_success(cluster: Callable[..., KubernetesApi]) -> None:
    cluster(runs(), Step(None, job="complete"))
    assert finish()[1] == Exit(0, stderr=())


def test_a_lost_node(cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_state, "OVERDUE_SECONDS", 1.0)
    unreachable = (500, 'Get "https://10.0.3.17:10250/containerLogs": dial tcp: i/o timeout')
    api = cluster(runs(*EVENTS[:3]), Step("node_lost", terminating=True, log_fault=unreachable))
    events, end = finish()
    assert own(events) == EVENTS[:3]
    error = error_of(end)
    assert isinstance(error, ShardLost)
    assert "was lost with its node: Taint manager" in str(error)
    assert len(api.asked("^DELETE")) == 1


def while_running(api: KubernetesApi, act: Act) -> float:
    """Start a shard, let ``act`` do something to it once it has said something, and how long that took."""

    async def main() -> float:
        using = launcher()
        handle = await started(using)
        following = aiter(using.follow(handle))
        while (await anext(following))["event"] != "started":
            pass
        rest = asyncio.create_task(anext(following, None))
        await asyncio.sleep(0.1)
        begun = time.monotonic()
        await act(using, handle)
        await asyncio.wait_for(asyncio.wait([rest]), 10)
        return time.monotonic() - begun

    return asyncio.run(asyncio.wait_for(main(), 30))


def silent() -> Step:
    """A shard that says one thing and then nothing any more."""
    return Step("running", log=lines(*EVENTS, gates=[None, threading.Event()]))


@pytest.mark.parametrize("tls", [False, True])
def test_stop(cluster: Callable[..., KubernetesApi], tmp_path: Path, tls: bool) -> None:
    api = cluster(silent(), certificate=make_certificate(tmp_path / "certificate.pem") if tls else None)

    async def twice(using: KubernetesLauncher, handle: ShardJob) -> None:
        await using.stop(handle)
        await using.stop(handle)

    assert while_running(api, twice) < 3
    [request] = api.asked("^DELETE")
    assert request.body == {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": "Background",
        "gracePeriodSeconds": 5,
    }
    assert api.jobs == {}
    wait_until(lambda: not followers(), 5, "nobody follows any more")


def followers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kubernetes follow"]


def test_a_follower_ends_when_its_log_can_be_interrupted_only(cluster: Callable[..., KubernetesApi]) -> None:
    """The API does not end the log, as when the node is gone with which it was."""
    api = cluster(silent())

    async def give_up(_: KubernetesLauncher, handle: ShardJob) -> None:
        handle.follower.give_up()

    assert while_running(api, give_up) < 3
    wait_until(lambda: not followers(), 5, "nobody follows any more")


def test_stop_of_a_job_that_is_gone(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster(silent())

    async def act(using: KubernetesLauncher, handle: ShardJob) -> None:
        del api.jobs[handle.name]
        await using.stop(handle)

    while_running(api, act)
    assert len(api.asked("^DELETE")) == 1


def test_a_cancelled_flow_leaves_no_job(cluster: Callable[..., KubernetesApi]) -> None:
    """Whether it is cancelled while a shard runs or while it is being created."""
    api = cluster(*SUCCESS)
    api.fail(r"POST .*/jobs(\?|$)", 2, 503)

    async def main() -> None:
        starting = asyncio.create_task(started(launcher()))
        while not api.asked("^POST"):
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(main())
    wait_until(lambda: len(api.asked("^POST")) == 3 and not api.jobs, 10, "the Job is deleted")


def test_an_earlier_attempt_that_still_runs_is_stopped_first(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster(*SUCCESS)
    api.add_job("earlier", *carried(labels()))
    api.add_job("earlier-and-done", *carried(labels()), finished=True)
    api.add_job("anothers", *carried(labels(task_run="another")))
    assert finish()[1].code == 0
    assert [request.path.rpartition("/")[2] for request in api.asked("^DELETE")] == ["earlier"]


def carried(given: Labels, **more: str) -> tuple[dict[str, str], dict[str, str]]:
    annotations = given.as_labels() | more
    return dict([MANAGED_BY]) | {k: v for k, v in annotations.items() if "/" not in v}, annotations


def test_sweep_of_a_flow_run(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster()
    api.add_job("mine-1", *carried(labels(shard="shards/a/1")))
    api.add_job("mine-2", *carried(labels(shard="shards/a/2")))
    api.add_job("done", *carried(labels(shard="shards/a/3")), finished=True)
    api.add_job("other", *carried(labels(flow_run="flow-run-2", shard="shards/a/4")))
    api.add_job("not-ours", {"app.kubernetes.io/managed-by": "helm"}, {})
    assert asyncio.run(launcher().sweep("flow-run-1")) == ["shards/a/1", "shards/a/2"]
    assert set(api.jobs) == {"done", "other", "not-ours"}
    [request] = api.asked("GET .*/jobs$")
    assert request.query == {"labelSelector": "app.kubernetes.io/managed-by=tomograph,tomograph.flow_run=flow-run-1"}
    assert asyncio.run(launcher().sweep("flow-run-1")) == []


def test_sweep_of_what_dead_flows_left(cluster: Callable[..., KubernetesApi]) -> None:
    def in_pod(pod: str, uid: str) -> dict[str, str]:
        return {FLOW_POD: pod, FLOW_POD_UID: uid, FLOW_POD_NAMESPACE: "flows"}

    api = cluster()
    for name, phase in (("lives", "Running"), ("failed", "Failed"), ("reborn", "Running")):
        api.other_pods[("flows", name)] = {"metadata": {"uid": f"uid-{name}"}, "status": {"phase": phase}}
    elsewhere = {"domain": "of-another-machine", "holder": "7-0"}
    api.add_job("living", *carried(labels(shard="shards/living")))
    api.add_job("dead", *carried(labels(shard="shards/dead", holder="17-0123456789ab")))
    api.add_job("unknown", *carried(labels(shard="shards/unknown", **elsewhere)))
    for pod, uid in (("lives", "uid-lives"), ("failed", "uid-failed"), ("gone", "uid-gone"), ("reborn", "uid-older")):
        api.add_job(f"of-{pod}", *carried(labels(shard=f"shards/{pod}", **elsewhere), **in_pod(pod, uid)))
    assert asyncio.run(launcher().sweep()) == ["shards/dead", "shards/failed", "shards/gone", "shards/reborn"]
    assert set(api.jobs) == {"living", "unknown", "of-lives"}


def test_flows_in_a_namespace_that_is_not_ours_are_left_alone(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster()
    api.fail("GET .*/namespaces/flows/pods/", 1, 403, "Forbidden", 'pods "flow-1" is forbidden')
    pod = {FLOW_POD: "flow-1", FLOW_POD_UID: "u", FLOW_POD_NAMESPACE: "flows"}
    api.add_job("theirs", *carried(labels(domain="elsewhere"), **pod))
    assert asyncio.run(launcher().sweep()) == []


def test_the_client_is_loaded_for_those_who_need_it() -> None:
    program = "import sys, flows.launchers.kubernetes.launcher as k; print(*{'kubernetes', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(BadInput, match="there is no cluster") as refused:
        asyncio.run(launcher().sweep())
    assert (refused.value.field, refused.value.value) == ("execution.launcher", "kubernetes")
    assert "KUBECONFIG" in refused.value.remedy


def test_a_cluster_that_does_not_answer(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster()
    api._server.server_close()
    with pytest.raises(BadInput, match=r"does not answer.*Connection refused") as refused:
        asyncio.run(launcher().sweep())
    assert refused.value.field == "execution.launcher"


@pytest.mark.parametrize(
    ("fault", "settings", "field", "says"),
    [
        ((403, "Forbidden", "cannot create resource jobs"), {}, "execution.kubernetes.namespace", "cannot create"),
        ((401, "Unauthorized", "Unauthorized"), {}, "execution.kubernetes.namespace", "Unauthorized"),
        ((422, "Invalid", "spec.nodeSelector: Invalid value"), {}, "execution.kubernetes", "spec.nodeSelector"),
        (None, {"namespace": "nowhere"}, "execution.kubernetes.namespace", 'namespaces "nowhere" not found'),
        (None, {"cpu": "many"}, "execution.kubernetes.cpu", "is no number of CPUs"),
    ],
)
def test_what_the_api_refuses_is_bad_input(
    cluster: Callable[..., KubernetesApi],
    monkeypatch: pytest.MonkeyPatch,
    fault: tuple[int, str, str] | None,
    settings: dict[str, Any],
    field: str,
    says: str,
) -> None:
    monkeypatch.setattr(kubernetes_cluster, "PATIENCE", 0.5)
    api = cluster(*SUCCESS)
    if fault:
        api.fail("POST", 100, *fault)
    with pytest.raises(BadInput, match=says) as refused:
        finish(launcher(**settings))
    assert refused.value.field == field


def test_namespaces(cluster: Callable[..., KubernetesApi], tmp_path: Path) -> None:
    """The settings', else the kubeconfig's, else default."""
    api = cluster()
    for settings, context, expected in (
        ({"namespace": "mine"}, NAMESPACE, "mine"),
        ({}, NAMESPACE, NAMESPACE),
        ({}, None, "default"),
    ):
        api.kubeconfig(tmp_path / "kubeconfig", context)
        asyncio.run(launcher(**settings).sweep())
        assert api.requests[-1].path == f"/apis/batch/v1/namespaces/{expected}/jobs"


def test_in_a_pod(cluster: Callable[..., KubernetesApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service account's token, authority and namespace go before a kubeconfig."""
    from kubernetes.config import incluster_config

    certificate = make_certificate(tmp_path / "ca.crt")
    api = cluster(*SUCCESS, certificate=certificate)
    (tmp_path / "kubeconfig").write_text("not to be read")
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "namespace").write_text(f"{NAMESPACE}\n")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate))
    monkeypatch.setattr(kubernetes_cluster, "OWN_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
    events, end = finish()
    assert end.code == 0
    assert own(events) == EVENTS
    assert api.created()["metadata"]["namespace"] == NAMESPACE


def test_something_else_that_answers(cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_cluster, "PATIENCE", 0.5)
    cluster().fail("GET", 1000, 200, message="<html>Sign in</html>")
    with pytest.raises(TransientError, match="is no Kubernetes API"):
        asyncio.run(launcher().sweep())


def test_a_certificate_that_nobody_vouches_for(cluster: Callable[..., KubernetesApi], tmp_path: Path) -> None:
    api = cluster(certificate=make_certificate(tmp_path / "certificate.pem"))
    api.certificate = make_certificate(tmp_path / "another.pem")
    api.kubeconfig(tmp_path / "kubeconfig")
    with pytest.raises(BadInput, match="certificate verify failed"):
        asyncio.run(launcher().sweep())


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


def test_a_shard_has_no_more_threads_than_cpus(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster(*SUCCESS)
    asyncio.run(started(launcher(cpu="6"), replace(shard_run(), threads=12), gpus=2))
    [container] = api.created()["spec"]["template"]["spec"]["containers"]
    assert container["args"][-2:] == ["--threads", "6"]
    assert container["resources"]["requests"]["cpu"] == "6"
