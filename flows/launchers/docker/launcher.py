"""Shards as containers of the Docker engine of this machine, or of podman's, which speaks the same API.

The flow stays attached to the containers it started. When it dies, whatever killed it, the engine closes the
standard input of each, and the shard in it ends; what is left of it is removed before its slot is used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.utils.socket import STDERR, SocketError, frames_iter
from urllib3.exceptions import HTTPError

from flows.holders import domain
from flows.launchers.base import (
    EXIT_BAD_INPUT,
    EXIT_TRANSIENT,
    STDERR_LINES_KEPT,
    Exit,
    Labels,
    Launcher,
    ShardLost,
    ShardRejected,
    ShardRun,
    code_of_container,
    passed_memory_limit,
)
from flows.launchers.docker.container import Image, container_body
from flows.launchers.events import LineReader, event_of
from flows.launchers.images import image_of, variable
from flows.launchers.settings import ContainerSettings, DockerSettings
from flows.slots import Lease, SlotPool, host_slots
from tasks.errors import BadInput

T = TypeVar("T")

STOP_GRACE_SECONDS = 5
ENGINE_SECONDS = 60
LATE_NEWS_SECONDS = 2
THREADS = 32
ENGINE_LOST = (requests.RequestException, HTTPError, OSError)
MACHINE_RAN_OUT = "was killed because the machine ran out of memory; use fewer execution.slots"
DOMAIN_LABEL = f"{Labels.NAMESPACE}domain"


@dataclass
class ShardContainer:
    """A running shard: its container, and the connection that it lives by."""

    identity: str
    memory: str | None
    connection: Any
    output: asyncio.Queue[str | None]
    """Lines of its standard output, then None."""
    stderr: deque[str]
    failure: dict[str, Any] = field(default_factory=dict)
    ended: bool = False
    """Nothing of it runs any more."""


class DockerLauncher(Launcher[ShardContainer]):
    """One container for each shard, from an image that is named by its digest."""

    def __init__(self, container: ContainerSettings, settings: DockerSettings) -> None:
        self._container = container
        self._settings = settings
        self._images: dict[str, Image] = {}
        self._threads = ThreadPoolExecutor(THREADS, "docker")
        self._connected: docker.DockerClient | None = None
        self._cdi = False
        self._connecting = threading.Lock()

    def slots(self, *, device: str, count: int | None, threads: int | None) -> SlotPool:
        return host_slots(device, count, threads)

    def check_environment(self, environment: str, device: str) -> None:
        self._image(image_of(environment, device, self._container.images), environment)

    async def start(self, run: ShardRun, lease: Lease) -> ShardContainer:
        starting = asyncio.ensure_future(self._call(partial(self._start, run, lease, asyncio.get_running_loop())))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await self.stop(await starting)
            raise

    async def follow(self, handle: ShardContainer) -> AsyncIterator[dict[str, Any]]:
        while (line := await handle.output.get()) is not None:
            event = event_of(line)
            if event["event"] == "failed":
                handle.failure = event
            yield event
        handle.output.put_nowait(None)  # for who follows again

    async def wait(self, handle: ShardContainer) -> Exit:
        try:
            end = await self._call(partial(self._end, handle))
        except NotFound:
            return Exit(1, lost="lost its container: it was removed while it ran")
        except ENGINE_LOST as error:
            return Exit(1, lost=f"was lost from sight: the container engine can't be reached: {error}")
        handle.ended = True
        return end

    async def stop(self, handle: ShardContainer) -> None:
        try:
            await self._call(partial(self._remove, handle.identity, polite=not handle.ended))
        except ENGINE_LOST:
            return  # without its flow's connection it ends by itself
        finally:
            handle.connection.close()

    async def sweep(self, flow_run: str | None = None) -> list[str]:
        found = await self._call(partial(self._labelled, flow_run))
        await asyncio.gather(*(self._call(partial(self._remove, identity)) for identity, _ in found))
        return sorted({labels.shard for _, labels in found})

    def _start(self, run: ShardRun, lease: Lease, loop: asyncio.AbstractEventLoop) -> ShardContainer:
        image = self._image(image_of(run.environment, run.device, self._container.images), run.environment)
        created = None
        try:
            self._clear(lease)
            body = container_body(run, lease, image, self._container, self._settings, cdi=self._cdi)
            created = self._engine.api.create_container_from_config(body, name=_name(run))["Id"]
            return self._started(created, loop)
        except BaseException as error:
            if created is not None:
                with contextlib.suppress(*ENGINE_LOST):
                    self._remove(created, polite=False)
            if isinstance(error, APIError):
                raise _refusal(error) from error
            if isinstance(error, ENGINE_LOST):
                raise ShardLost(f"could not be started: the container engine can't be reached: {error}") from error
            raise

    def _started(self, identity: str, loop: asyncio.AbstractEventLoop) -> ShardContainer:
        streams = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        connection = self._engine.api.attach_socket(identity, params=streams)
        output: asyncio.Queue[str | None] = asyncio.Queue()
        handle = ShardContainer(
            identity, self._container.memory, connection, output, stderr=deque(maxlen=STDERR_LINES_KEPT)
        )
        self._engine.api.start(identity)
        threading.Thread(target=_read, args=(handle, loop), daemon=True, name=f"output of {identity[:12]}").start()
        return handle

    def _clear(self, lease: Lease) -> None:
        """Stop what a dead flow left in these slots: their lock is ours now, so no living one has them."""
        leased = {slot.name for slot in lease.slots}
        for identity, labels in self._containers(running=True):
            if labels.domain == domain() and leased & set(labels.slots.split(",")):
                self._remove(identity, polite=False)

    def _remove(self, identity: str, polite: bool = True) -> None:
        with contextlib.suppress(NotFound):
            if polite:
                self._engine.api.stop(identity, timeout=STOP_GRACE_SECONDS)
            try:
                self._engine.api.remove_container(identity, force=True, v=True)
            except APIError as error:
                if error.status_code != requests.codes.conflict:  # somebody else is removing it
                    raise

    def _end(self, handle: ShardContainer) -> Exit:
        state = self._final_state(handle.identity)
        code = code_of_container(int(state["ExitCode"]))
        had_its_say = code in (0, EXIT_BAD_INPUT, EXIT_TRANSIENT)
        lost = "" if had_its_say else self._lack_of_memory(handle, state, code)
        return Exit(code, handle.failure, tuple(handle.stderr), lost=lost)

    def _lack_of_memory(self, handle: ShardContainer, state: dict[str, Any], code: int) -> str:
        """``Exit.lost`` of a container that was killed because memory ran out, empty for any other.

        The engine's flag is not enough: the news of the lack and that of the end reach it in no fixed order, and podman
        sets none. Its log of events also holds what came late, and every kill that somebody asked for.
        """
        lack = passed_memory_limit(handle.memory) if handle.memory else MACHINE_RAN_OUT
        if state.get("OOMKilled"):
            return lack
        if code != -signal.SIGKILL:
            return ""
        since, until = (datetime.fromisoformat(state[time]).timestamp() for time in ("StartedAt", "FinishedAt"))
        filters = {"container": handle.identity, "event": ["oom", "kill"]}
        events = self._engine.api.events(f"{since:.6f}", f"{until + LATE_NEWS_SECONDS:.6f}", filters, decode=True)
        seen = {event["Action"] for event in events}
        if "oom" in seen:
            return lack
        return "" if "kill" in seen else f"was killed by SIGKILL, and nobody asked for that: most likely it {lack}"

    def _final_state(self, identity: str) -> dict[str, Any]:
        """Its state once it has ended. One that goes on although its output is lost is stopped."""
        try:
            self._engine.api.wait(identity, timeout=2 * STOP_GRACE_SECONDS)
        except requests.exceptions.ConnectionError:  # docker-py's word for a timeout, too
            self._engine.api.stop(identity, timeout=STOP_GRACE_SECONDS)
        return self._engine.api.inspect_container(identity)["State"]

    def _labelled(self, flow_run: str | None) -> list[tuple[str, Labels]]:
        return [found for found in self._containers(running=False) if found[1].found_by(flow_run)]

    def _containers(self, *, running: bool) -> Iterator[tuple[str, Labels]]:
        for one in self._engine.api.containers(all=not running, filters={"label": DOMAIN_LABEL}):
            if labels := Labels.of_labels(one["Labels"]):
                yield one["Id"], labels

    def _image(self, reference: str, environment: str) -> Image:
        """The image that ``reference`` names, fetched if it is in a registry; the same one for the whole run.

        Raises:
            BadInput: there is none.
        """
        if reference not in self._images:
            self._images[reference] = self._found(reference, environment)
        return self._images[reference]

    def _found(self, reference: str, environment: str) -> Image:
        try:
            try:
                found = self._engine.images.get(reference)
            except ImageNotFound:
                if "/" not in reference:
                    raise
                found = self._engine.images.pull(reference)
        except APIError as error:
            problem = f"the container engine has no such image ({error.explanation or error})"
            remedy = f"run `make images`, or name another in {variable(environment)}"
            raise BadInput(f"execution.container.images.{environment}", reference, problem, remedy) from error
        repository = reference.partition("@")[0].rpartition(":")[0] if ":" in reference else reference
        digests = [one.partition("@") for one in found.attrs.get("RepoDigests") or []]
        known = {name: digest for name, _, digest in digests}
        return Image(reference, found.id, known.get(repository) or next(iter(known.values()), found.id))

    @property
    def _engine(self) -> docker.DockerClient:
        """The engine that the environment names (DOCKER_HOST).

        Raises:
            BadInput: it does not answer.
        """
        with self._connecting:
            if self._connected is None:
                try:
                    client = docker.DockerClient.from_env(timeout=ENGINE_SECONDS, max_pool_size=THREADS)
                    components = client.version().get("Components") or []
                except (DockerException, *ENGINE_LOST) as error:
                    problem = f"the container engine does not answer: {error}"
                    remedy = "start Docker, name its socket in DOCKER_HOST, or use the launcher 'process'"
                    raise BadInput("execution.launcher", "docker", problem, remedy) from error
                self._cdi = any("podman" in str(one.get("Name", "")).lower() for one in components)
                self._connected = client
            return self._connected

    async def _call(self, function: Callable[[], T]) -> T:
        """Run a call that blocks. asyncio's own threads are few, and the flow needs them."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _read(handle: ShardContainer, loop: asyncio.AbstractEventLoop) -> None:
    """Hand over the output of a container until it ends or the connection does."""
    stdout, stderr = LineReader(), LineReader()

    def tell(lines: Sequence[str | None]) -> None:
        for line in lines:
            loop.call_soon_threadsafe(handle.output.put_nowait, line)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
        with contextlib.suppress(OSError, ValueError, SocketError):
            for stream, data in frames_iter(handle.connection, tty=False):
                if stream == STDERR:
                    handle.stderr.extend(stderr.feed(data))
                else:
                    tell(stdout.feed(data))
        handle.stderr.extend(stderr.end())
        tell([*stdout.end(), None])


def _refusal(error: APIError) -> ShardRejected | ShardLost:
    """What it means that the engine did not start a container."""
    said = str(error.explanation or error)
    if "device driver" in said or "nvidia" in said.lower():
        remedy = "install the NVIDIA container toolkit on this host, or use execution.device: cpu"
        return ShardRejected(f"was promised a GPU, and the container engine gives none: {said}; {remedy}", "device")
    wrong = error.status_code in (requests.codes.bad_request, requests.codes.not_found)
    if wrong or "not found" in said:  # podman's code for a missing network says that the engine failed
        return ShardRejected(f"could not be started: {said}", "execution.container")
    return ShardLost(f"could not be started: {said}")


def _name(run: ShardRun) -> str:
    """A name for people: "tomograph-trials-1f2e3d4c-9a8b7c6d"."""
    stage = "".join(letter if letter.isalnum() else "-" for letter in run.labels.stage)
    return f"tomograph-{stage}-{os.path.basename(run.labels.shard)[:8]}-{uuid.uuid4().hex[:8]}"
