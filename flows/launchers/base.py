"""The interface between a flow and the machine that runs its shards.

A launcher starts one shard in its slots, follows its output, stops it, and sweeps up what a dead flow left
behind. Everything it runs carries labels, so that another process can find it.
"""

from __future__ import annotations

import abc
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Generic, TypeVar

from flows.holders import domain, holder_lives
from flows.slots import Lease, SlotPool
from tasks.artifacts.catalog import split_spec_url
from tasks.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_TRANSIENT
from tasks.spec import TORCH

COMMAND = ("python", "-m", "tasks")
"""What the container of a shard runs, whatever its image would."""
SIGNALLED = 128
LAST_SIGNAL = 64
STDERR_LINES_SHOWN = 20
STDERR_LINES_KEPT = 50


class ShardError(RuntimeError):
    """A shard did not finish. ``transient`` says whether another attempt can cure it.

    ``field`` is the name of what the user gave, where that was refused.
    """

    transient: ClassVar[bool] = False
    exit_status: ClassVar[int] = EXIT_FAILED

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ShardRejected(ShardError):
    """The shard refused its input."""

    exit_status: ClassVar[int] = EXIT_BAD_INPUT


class ShardBroken(ShardError):
    """The shard's code failed: a bug, or a library that doesn't do what the code expects."""


class ShardLost(ShardError):
    """The shard was killed, or met a fault that passes: memory, network, a machine that went away."""

    transient = True
    exit_status: ClassVar[int] = EXIT_TRANSIENT


@dataclass(frozen=True)
class Labels:
    """What a running shard carries, to be found by a process that didn't start it."""

    flow_run: str
    task_run: str
    stage: str
    shard: str
    holder: str
    """Name of the flow process, see ``flows.holders``."""
    domain: str
    """Where ``holder`` can be asked after, see ``flows.holders``."""
    slots: str
    """Names of the leased slots, joined by commas."""

    PREFIX: ClassVar[str] = "TOMOGRAPH_LABEL_"
    NAMESPACE: ClassVar[str] = "tomograph."

    def as_environment(self) -> dict[str, str]:
        return {self.PREFIX + name.upper(): value for name, value in vars(self).items()}

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Labels | None:
        """The labels that a process carries, None for one that is not a shard's."""
        return cls._of(environment, lambda name: cls.PREFIX + name.upper())

    def of_all_shards(self) -> Labels:
        """What a process carries that serves all shards of the flow run, and so each of its forks."""
        return replace(self, task_run="", stage="", shard=f"a shard of flow run {self.flow_run}", slots="")

    def as_labels(self) -> dict[str, str]:
        """Labels of a container: "tomograph.flow_run" and so on."""
        return {self.NAMESPACE + name: value for name, value in vars(self).items()}

    @classmethod
    def of_labels(cls, labels: Mapping[str, str]) -> Labels | None:
        """The labels that a container carries, None for one that is not a shard's."""
        return cls._of(labels, lambda name: cls.NAMESPACE + name)

    @classmethod
    def _of(cls, given: Mapping[str, str], key: Callable[[str], str]) -> Labels | None:
        names = [one.name for one in fields(cls)]
        return cls(**{name: given[key(name)] for name in names}) if all(key(name) in given for name in names) else None

    def orphaned(self) -> bool:
        """Whether the flow that started the shard is known to be dead."""
        return self.domain == domain() and not holder_lives(self.holder)

    def found_by(self, flow_run: str | None) -> bool:
        """Whether a sweep for ``flow_run``, or (None) for what dead flows left, is after this shard."""
        return self.orphaned() if flow_run is None else self.flow_run == flow_run


@dataclass(frozen=True)
class ShardRun:
    """One attempt at one shard: where its spec is and how to run it. None of it is part of the spec."""

    spec_url: str
    labels: Labels
    device: str
    threads: int
    batch_size: int | None = None
    environment: str = TORCH
    """Name of the environment that the kind of shard asks for."""
    preload: tuple[str, ...] = ()
    """Modules that may be loaded before the shard starts."""

    @property
    def store(self) -> str:
        """URL or folder of the store."""
        return split_spec_url(self.spec_url)[0]

    @property
    def arguments(self) -> list[str]:
        """Command line after ``python -m tasks``."""
        arguments = ["run", self.spec_url, "--device", self.device, "--threads", str(self.threads)]
        if self.batch_size is not None:
            arguments += ["--batch-size", str(self.batch_size)]
        return arguments


@dataclass(frozen=True)
class Exit:
    """How a shard ended.

    ``code`` is the exit code, negative for the signal that killed it. ``failure`` is the shard's own account
    (its ``failed`` event) and ``stderr`` the end of its error output. What the launcher knows and the shard does
    not are ``lost``, why another attempt can help, and ``refused``, why none does: each goes on after the name
    of the shard ("was evicted from its node").
    """

    code: int
    failure: dict[str, Any] = field(default_factory=dict)
    stderr: tuple[str, ...] = ()
    lost: str = ""
    refused: str = ""

    def error(self) -> ShardError | None:
        """The error that this end means, or None when all went well."""
        if self.code == 0:
            return None
        if self.refused:
            return ShardRejected(self.refused)
        if self.lost:
            return ShardLost(f"{self.lost}{self._last_words()}")
        message = str(self.failure.get("message") or "").strip()
        reason = f": {message}" if message else self._last_words()
        if self.code == EXIT_BAD_INPUT:
            return ShardRejected(f"refused its input{reason}", self.failure.get("field"))
        if self.code == EXIT_TRANSIENT:
            return ShardLost(f"met a passing fault{reason}")
        if self.code < 0:
            return ShardLost(f"was killed by {_signal_name(-self.code)}{self._last_words()}")
        return ShardBroken(
            f"failed with exit code {self.code}" + (f": {message}" if message else "") + self._last_words()
        )

    def _last_words(self) -> str:
        trace = str(self.failure.get("traceback") or "").strip().splitlines()
        lines = (trace or list(self.stderr))[-STDERR_LINES_SHOWN:]
        return "\n" + "\n".join(f"  | {line}" for line in lines) if lines else ""


HandleT = TypeVar("HandleT")


class Launcher(abc.ABC, Generic[HandleT]):
    """Runs shards on one kind of machine."""

    leases_this_host: ClassVar[bool] = True
    """Whether its slots are GPUs or cores of this host, leased by kernel locks."""
    keeps_time: ClassVar[bool] = False
    """Whether it stops a shard by itself when its time is up, so that time in a cluster's queue does not count."""

    @abc.abstractmethod
    def slots(self, *, device: str, count: int | None, threads: int | None) -> SlotPool:
        """The slots for shards on ``device`` ("cpu", "cuda" or "auto"), at most ``count`` of them.

        Where a cluster's scheduler is the queue, a slot is a place in line and its lease holds no lock.

        Raises:
            BadInput: there is no such device here.
        """

    @abc.abstractmethod
    def check_environment(self, environment: str, device: str) -> None:
        """Refuse an environment that shards on ``device`` ("cpu" or "cuda") can't be started in.

        Raises:
            BadInput: saying what to do.
        """

    @abc.abstractmethod
    async def start(self, run: ShardRun, lease: Lease) -> HandleT:
        """Start a shard in its leased slots, which stay taken for as long as it lives."""

    @abc.abstractmethod
    def follow(self, handle: HandleT) -> AsyncIterator[dict[str, Any]]:
        """Yield the shard's events live, until it ends."""

    @abc.abstractmethod
    async def wait(self, handle: HandleT) -> Exit:
        """How the shard ended, once ``follow`` is exhausted."""

    @abc.abstractmethod
    async def stop(self, handle: HandleT) -> None:
        """End the shard, first politely. Nothing to do when it has ended."""

    @abc.abstractmethod
    async def sweep(self, flow_run: str | None = None) -> list[str]:
        """Stop what carries the label of ``flow_run``, or (None) what a dead flow left behind.

        Returns the names of the shards that were stopped.
        """

    async def close(self) -> None:
        """End what serves several shards. None runs any more."""


def code_of_container(status: int) -> int:
    """A container's exit status as ``Exit.code``: one above 128 stands for a signal, as a shell counts."""
    return SIGNALLED - status if SIGNALLED < status <= SIGNALLED + LAST_SIGNAL else status


def passed_memory_limit(limit: str) -> str:
    """``Exit.lost`` of a container that was killed for its memory."""
    return f"passed its memory limit of {limit}; raise execution.container.memory"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
