"""Jobs that earlier attempts and dead flows left: which are deleted, and which are left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flows.launchers.base import Labels
from flows.launchers.kubernetes.job import FLOW_POD, FLOW_POD_NAMESPACE, FLOW_POD_UID, MANAGED_BY
from tests.flows.launchers.kubernetes.api import KubernetesApi
from tests.flows.launchers.kubernetes.shards import SUCCESS, finish, labels, launcher


def carried(given: Labels, **more: str) -> tuple[dict[str, str], dict[str, str]]:
    annotations = given.as_labels() | more
    return dict([MANAGED_BY]) | {k: v for k, v in annotations.items() if "/" not in v}, annotations


def test_an_earlier_attempt_that_still_runs_is_stopped_first(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster(*SUCCESS)
    api.add_job("earlier", *carried(labels()))
    api.add_job("earlier-and-done", *carried(labels()), finished=True)
    api.add_job("anothers", *carried(labels(task_run="another")))
    assert finish()[1].code == 0
    assert [request.path.rpartition("/")[2] for request in api.asked("^DELETE")] == ["earlier"]


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
