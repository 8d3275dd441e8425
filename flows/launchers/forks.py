"""The flow's side of ``python -m tasks fork-server``: shards as forks of a process that has their libraries loaded."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence

from flows.launchers.events import LINE_LIMIT
from tasks.fork_server import MOST_BYTES


class Fork:
    """A running fork, as far as an `asyncio.subprocess.Process` is looked at: its pipes, its end.

    Its standard input stays open for as long as it runs: it ends when the kernel closes it for a dead flow.
    """

    def __init__(self, stdin: int, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        self.pid = 0
        self.stdout, self.stderr = stdout, stderr
        self._stdin = stdin
        self._started = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def returncode(self) -> int | None:
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    async def started(self) -> None:
        await self._started

    def tell(self, answer: Mapping[str, int]) -> None:
        """What the server says of it."""
        if "pid" in answer:
            self.pid = answer["pid"]
            self._started.set_result(None)
        else:
            self._end(answer["status"])

    def lose(self) -> None:
        """The server is gone and knows no status: the fork is ended, as lost."""
        if self._ended.done():
            return
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        if not self._started.done():
            self._started.set_result(None)
        self._end(-signal.SIGKILL)

    def _end(self, status: int) -> None:
        os.close(self._stdin)
        self._ended.set_result(status)


class ForkServer:
    """One server. It is started with the first fork, and again if it was killed."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._forks: dict[int, Fork] = {}
        self._ids = itertools.count()
        self._starting = asyncio.Lock()

    async def fork(
        self,
        program: Sequence[str],
        arguments: Sequence[str],
        environment: Mapping[str, str],
        preload: Sequence[str],
        held: Sequence[int],
    ) -> Fork:
        """A fork that runs ``python -m tasks`` with these arguments, modules loaded before, descriptors to hold open.

        program, environment: the server's command but for its socket; they count when it has to be started.
        """
        async with self._starting:  # slots ask side by side
            if self._socket is None:
                self._socket = await self._start(program, environment)
            requests = self._socket
        stdin, feed = os.pipe()
        (stdout, out), (stderr, err) = await _reader(), await _reader()
        fork = Fork(feed, stdout, stderr)
        number = next(self._ids)
        self._forks[number] = fork
        request = {"id": number, "arguments": list(arguments), "preload": list(preload)}
        try:
            socket.send_fds(requests, [json.dumps(request).encode()], [stdin, out, err, *held])
        except OSError:  # the server has just ended
            del self._forks[number]
            fork.lose()
        finally:
            for descriptor in (stdin, out, err):
                os.close(descriptor)
        await fork.started()
        return fork

    async def close(self) -> None:
        """End the server."""
        self._lost()
        if self._process is not None:
            await self._process.wait()
            self._process = None

    async def _start(self, program: Sequence[str], environment: Mapping[str, str]) -> socket.socket:
        if self._process is not None:
            await self._process.wait()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(*program, str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=dict(environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.setblocking(False)
        asyncio.get_running_loop().add_reader(ours, self._read)
        return ours

    def _read(self) -> None:
        try:
            message = self._socket.recv(MOST_BYTES) if self._socket else b""
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._lost()
            return
        answer = json.loads(message)
        number = answer["id"]
        self._forks[number].tell(answer)
        if "status" in answer:
            del self._forks[number]

    def _lost(self) -> None:
        """The server ended, or is to end."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        for fork in self._forks.values():
            fork.lose()
        self._forks.clear()


async def _reader() -> tuple[asyncio.StreamReader, int]:
    """The reading end of a new pipe, and the descriptor of its writing end."""
    reading, writing = os.pipe()
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(reading, "rb", 0))
    return reader, writing
