"""What the state of a shard's Job and its pod means, as the cluster's API describes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.launchers.base import EXIT_BAD_INPUT, Exit, code_of_container, passed_memory_limit

Object = Mapping[str, Any]
"""A resource of the API as it came, parsed from JSON."""

NO_CODE = 1
"""For a shard whose own exit code nobody knows; what the launcher knows goes before it."""
IMAGE_PATIENCE = 180.0
CONFIGURATION_PATIENCE = 60.0
CREATION_PATIENCE = 120.0
OVERDUE_SECONDS = 60.0
"""So long after a pod should have ended, its node no longer answers."""

_HOPELESS = {"InvalidImageName", "ErrImageNeverPull"}
_IMAGE = {"ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"}
_CONFIGURATION = {"CreateContainerConfigError"}
_NODE = {"CreateContainerError", "PreCreateHookError", "RunContainerError"}
_REMEDIES = {
    **dict.fromkeys(_HOPELESS | _IMAGE, "correct execution.container.images, or give the nodes access to the registry"),
    "CreateContainerConfigError": "create what it lacks, or correct execution.kubernetes.secrets",
}
_NEVER_STARTED = {"StartError", "ContainerCannotRun"}
_POD_DELETED = "was stopped: its pod was deleted"
_LOST_WITH_NODE = "was lost with its node"
_SHUT_DOWN = "was stopped since its node shuts down"
_PREEMPTED = "was preempted by a pod that goes first"
_EVICTED = "was evicted from its node"
_REASONS = {
    "Evicted": _EVICTED,
    "NodeLost": _LOST_WITH_NODE,
    "NodeShutdown": _SHUT_DOWN,
    "Shutdown": _SHUT_DOWN,
    "Terminated": _SHUT_DOWN,
    "Preempting": _PREEMPTED,
    # reasons of the condition DisruptionTarget
    "PreemptionByScheduler": _PREEMPTED,
    "DeletionByTaintManager": _LOST_WITH_NODE,
    "DeletionByPodGC": _LOST_WITH_NODE,
    "EvictionByEvictionAPI": _EVICTED,
    "TerminationByKubelet": "was stopped by its node",
}
_TOOK_TOO_LONG = (
    "took longer than execution.timeout_minutes and was stopped; the next attempt goes on from its last chunk"
)


@dataclass(frozen=True)
class Waiting:
    """The shard has not started. ``notice`` is what keeps it from that, empty while everything goes its way.

    ``patience`` is for how many seconds that may last until it is hopeless, None for ever. ``remedy`` is what to do;
    with ``elsewhere``, another attempt may get a node where it goes better.
    """

    notice: str = ""
    patience: float | None = None
    remedy: str = ""
    elsewhere: bool = False


@dataclass(frozen=True)
class Running:
    """Its container runs."""


@dataclass(frozen=True)
class Ended:
    """Nothing more will come of this attempt.

    ``ran`` says that its container has run, so there may be more of its log to read, and ``settled`` that the Job
    has nothing left to stop.
    """

    exit: Exit
    ran: bool = False
    settled: bool = True


State = Waiting | Running | Ended
REPLACED = Ended(Exit(NO_CODE, lost=_POD_DELETED), settled=False)
"""The pod of this attempt is gone, and its Job has another."""


def state_of(job: Object | None, pod: Object | None, *, terminating_for: float = 0.0) -> State:
    """How it stands with a shard.

    Args:
        job: its Job, None if that is gone.
        pod: the Job's pod, None if there is none.
        terminating_for: for how many seconds the pod has been seen to be about to end.
    """
    if pod is None:
        return _without_pod(job)
    status = pod.get("status") or {}
    container = _container(status)
    state = container.get("state") or {}
    settled = not is_terminating(pod)  # the Job of a pod that was deleted may make another
    if "terminated" in state:
        return Ended(_exit(pod, state["terminated"]), ran=True, settled=settled)
    if status.get("phase") in ("Failed", "Succeeded"):  # its container never ran, or nobody knows how it ended
        lost = _disruption(pod) or "was stopped by the cluster"
        return Ended(Exit(NO_CODE, lost=lost), ran="running" in state, settled=settled)
    if terminating_for > OVERDUE_SECONDS:
        node = (pod.get("spec") or {}).get("nodeName", "")
        lost = _disruption(pod) or f"{_LOST_WITH_NODE} {node}, which no longer answers"
        return Ended(Exit(NO_CODE, lost=lost), settled=False)
    if "running" in state:
        return Running()
    if is_terminating(pod):
        return Waiting()
    return _waiting(status, state.get("waiting") or {})


def is_terminating(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def is_finished(job: Object) -> bool:
    """Whether nothing of the Job runs any more, or soon nothing will: it is being deleted."""
    return "deletionTimestamp" in job["metadata"] or bool(_condition(job, "Complete") or _condition(job, "Failed"))


def newest(pods: Sequence[Object]) -> Object | None:
    return max(pods, key=lambda pod: pod["metadata"].get("creationTimestamp") or "", default=None)


def last_words(pod: Object | None) -> list[str]:
    """The end of the container's log as its state has it, for a log that can't be read."""
    terminated = (_container((pod or {}).get("status") or {}).get("state") or {}).get("terminated") or {}
    return str(terminated.get("message") or "").splitlines()


def _without_pod(job: Object | None) -> State:
    if job is None:
        return Ended(Exit(NO_CODE, lost="was stopped: its job was deleted"))
    if _condition(job, "Complete"):
        return Ended(Exit(0))
    if failed := _condition(job, "Failed"):
        if failed.get("reason") == "DeadlineExceeded":
            return Ended(Exit(NO_CODE, lost=_TOOK_TOO_LONG))
        return Ended(Exit(NO_CODE, lost=f"was lost: its pod is gone{_details(failed)}"))
    if "deletionTimestamp" in job["metadata"]:
        return Ended(Exit(NO_CODE, lost="was stopped: its job was deleted"))
    return Waiting()


def _exit(pod: Object, terminated: Object) -> Exit:
    code, reason = int(terminated.get("exitCode", NO_CODE)), terminated.get("reason")
    if code in (0, EXIT_BAD_INPUT):  # it had its say before whatever happened to its pod
        return Exit(code)
    if reason in _NEVER_STARTED:
        return Exit(code, refused=f"could not be started: {terminated.get('message') or reason}")
    if reason == "OOMKilled":
        return Exit(code, lost=_out_of_memory(pod))
    if reason == "ContainerStatusUnknown":
        return Exit(code, lost=_disruption(pod) or _LOST_WITH_NODE)
    return Exit(code_of_container(code), lost=_disruption(pod))


def _out_of_memory(pod: Object) -> str:
    container = pod["spec"]["containers"][0]
    limit = ((container.get("resources") or {}).get("limits") or {}).get("memory")
    if limit:
        return passed_memory_limit(limit)
    return (
        "was killed because its node ran out of memory; "
        "give execution.container.memory, so that it gets a node that has as much"
    )


def _disruption(pod: Object) -> str:
    """Why the cluster ended the pod, empty if it did not."""
    status = pod.get("status") or {}
    reason = status.get("reason")
    if reason == "DeadlineExceeded":
        return _TOOK_TOO_LONG
    if reason:
        return _REASONS.get(reason, f"was not run by its node: {reason}") + _details(status)
    if target := _condition(pod, "DisruptionTarget"):
        return _REASONS.get(target.get("reason", ""), "was stopped by the cluster") + _details(target)
    return _POD_DELETED if is_terminating(pod) else ""


def _waiting(status: Object, waiting: Object) -> Waiting:
    reason, said = waiting.get("reason", ""), _details(waiting)
    remedy = _REMEDIES.get(reason, "")
    if reason in _HOPELESS:
        return Waiting(f"{reason}{said}", 0.0, remedy)
    if reason in _IMAGE:
        return Waiting(f"{reason}{said}", IMAGE_PATIENCE, remedy)
    if reason in _CONFIGURATION | _NODE:
        return Waiting(f"{reason}{said}", CONFIGURATION_PATIENCE, remedy, elsewhere=reason in _NODE)
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            notice = f"waits for its place in the cluster{_details(condition)}"
            if re.search(r'persistentvolumeclaim "[^"]*" not found', condition.get("message") or ""):
                return Waiting(notice, CREATION_PATIENCE, "create the claim, or correct execution.container.volumes")
            return Waiting(notice)
    return Waiting()


def _container(status: Object) -> Object:
    statuses = status.get("containerStatuses") or [{}]
    return statuses[0]


def _condition(resource: Object, kind: str) -> Object | None:
    """The condition of that type, if it holds."""
    for condition in (resource.get("status") or {}).get("conditions") or []:
        if condition.get("type") == kind and condition.get("status") == "True":
            return condition
    return None


def _details(source: Object) -> str:
    message = str(source.get("message") or "").strip()
    return f": {message}" if message else ""
