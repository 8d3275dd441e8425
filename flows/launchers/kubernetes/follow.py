"""Following one shard's Job from its creation to its end: what keeps it waiting, its log, how it ended."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from flows.launchers.base import STDERR_LINES_KEPT, Exit
from flows.launchers.events import event_of
from flows.launchers.kubernetes.cluster import CLIENT_FAULTS, ApiFault, Cluster
from flows.launchers.kubernetes.job import CONTAINER
from flows.launchers.kubernetes.log import Log
from flows.launchers.kubernetes.state import (
    CREATION_PATIENCE,
    NO_CODE,
    REPLACED,
    Ended,
    Object,
    Waiting,
    is_terminating,
    last_words,
    newest,
    state_of,
)

Event = dict[str, Any]

CHANGE_SECONDS = 10.0
SILENCE_SECONDS = 15.0
"""A pod that neither starts nor says why is asked after in the cluster's events."""
LOG_PATIENCE = 30.0
"""For so long the log of a container that has ended is asked for when it can't be read."""
LOG_PAUSE = 1.0


class Follower:
    """Follows the Job ``name``. Everything here blocks, and ends soon after ``give_up`` is called."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.end: Exit | None = None
        self.settled = False
        """Nothing of the Job is left to stop."""
        self._given_up = threading.Event()
        self._cluster = cluster.until(self._given_up)
        self._name = name
        self._pod: str | None = None
        """The uid of the pod that this attempt is."""
        self._log: Log | None = None
        self._failure: Event = {}
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES_KEPT)
        self._told: set[str] = set()
        self._created = time.monotonic()
        self._held_up_since: float | None = None
        self._hindrances: list[str] = []
        self._terminating_since: float | None = None

    def give_up(self) -> None:
        """Called from another thread."""
        self._given_up.set()
        if self._log:
            self._log.interrupt()

    def events(self) -> Iterator[Event]:
        """What the shard says, and what is to be said of it, until ``end`` is known.

        Raises:
            TransientError, BadInput: the cluster can't be asked any more.
        """
        while not self._given_up.is_set():
            job, pod, version = self._look()
            if pod and self._replaces_ours(pod):
                self._finish(REPLACED, pod=None)
                return
            state = state_of(job, pod, terminating_for=self._terminating_for(pod))
            if isinstance(state, Ended):
                if state.ran and pod:
                    yield from self._rest_of_log(pod)
                self._finish(state, pod)
                return
            if isinstance(state, Waiting):
                yield from self._hold_ups(state, pod or job)
                if self.end:
                    return
                self._cluster.await_change(self._name, version, CHANGE_SECONDS)
            elif pod:
                yield from self._say(f"runs in the pod {pod['metadata']['name']} on {pod['spec'].get('nodeName')}")
                brought_something = yield from self._live_log(pod)
                if not brought_something:
                    self._cluster.await_change(self._name, version, LOG_PAUSE)

    def _look(self) -> tuple[Object | None, Object | None, str]:
        """The Job, which is asked for only while it has no pod, its pod, and the version of what was seen."""
        job = None
        pods, version = self._cluster.pods_of(self._name)
        if not pods:
            job = self._cluster.job(self._name)
            pods, version = self._cluster.pods_of(self._name)  # a finished Job's pod may be younger than the first look
        return job, newest(pods), version

    def _replaces_ours(self, pod: Object) -> bool:
        """Whether ours was deleted and its Job has got another: by then two may have run at once."""
        self._pod = self._pod or pod["metadata"]["uid"]
        return pod["metadata"]["uid"] != self._pod

    def _live_log(self, pod: Object) -> Generator[Event, None, bool]:
        """Its log until it is cut or ends, and whether it had anything new.

        Where it can't be read now, the shard goes on all the same.
        """
        something = False
        try:
            for event in self._read(pod, to_its_end=False):
                something = True
                yield event
        except ApiFault as fault:
            yield from self._say(f"warning: its log can't be read: {fault}")
        except CLIENT_FAULTS:  # long connections are cut by whatever is on the way
            pass
        return something

    def _rest_of_log(self, pod: Object) -> Iterator[Event]:
        deadline = time.monotonic() + LOG_PATIENCE
        while not self._given_up.is_set():
            try:
                yield from self._read(pod, to_its_end=True)
                return
            except (ApiFault, *CLIENT_FAULTS) as fault:
                if (isinstance(fault, ApiFault) and not fault.may_pass) or time.monotonic() > deadline:
                    yield from self._say(f"warning: the end of its log can't be read: {fault}")
                    return
                self._given_up.wait(LOG_PAUSE)

    def _read(self, pod: Object, *, to_its_end: bool) -> Iterator[Event]:
        if self._log is None:
            self._log = Log(partial(self._cluster.log, pod["metadata"]["name"], CONTAINER))
        for line in self._log.read(to_its_end=to_its_end):
            event = event_of(line)
            if event["event"] == "failed":
                self._failure = event
            elif event == {"event": "log", "message": line}:
                self._stderr.append(line)
            yield event

    def _hold_ups(self, state: Waiting, waiter: Object | None) -> Iterator[Event]:
        """Tell what keeps the shard from starting, and end it when that is hopeless."""
        if not state.notice and waiter and time.monotonic() - self._created > SILENCE_SECONDS:
            state = self._complaint(waiter)
        if state.notice:
            yield from self._say(state.notice)
        if state.patience is None:
            self._held_up_since = None
            self._hindrances.clear()
            return
        self._held_up_since = self._held_up_since or time.monotonic()
        self._hindrances.append(state.notice)
        if time.monotonic() - self._held_up_since >= state.patience:
            reason = max(self._hindrances, key=len)  # a first message says more than that it is tried again
            remedy = f"; {state.remedy}" if state.remedy else ""
            message = f"could not be started: {reason}{remedy}"
            self.end = Exit(NO_CODE, lost=message) if state.elsewhere else Exit(NO_CODE, refused=message)

    def _complaint(self, waiter: Object) -> Waiting:
        """What the cluster's events say of a pod that doesn't start, or of a Job that gets no pod."""
        complaints = self._cluster.warnings(waiter["metadata"]["uid"])
        complaints = [one for one in complaints if not one.startswith("FailedScheduling:")]  # its condition says that
        if not complaints:
            return Waiting()
        last = complaints[-1]
        for_ever = last.startswith("FailedCreate:") and "exceeded quota" not in last
        return Waiting(last, CREATION_PATIENCE if for_ever else None)

    def _terminating_for(self, pod: Object | None) -> float:
        if pod is None or not is_terminating(pod):
            return 0.0
        self._terminating_since = self._terminating_since or time.monotonic()
        return time.monotonic() - self._terminating_since

    def _finish(self, state: Ended, pod: Object | None) -> None:
        stderr = tuple(self._stderr)
        if not self._failure and not stderr:
            stderr = tuple(last_words(pod))
        self.settled = state.settled
        self.end = replace(state.exit, failure=self._failure, stderr=stderr)

    def _say(self, message: str) -> Iterator[Event]:
        """As a log event, once."""
        if message not in self._told:
            self._told.add(message)
            yield {"event": "log", "message": message}
