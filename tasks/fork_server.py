"""``python -m tasks fork-server``: a process that loads the libraries of shards once, and forks for each shard.

Importing torch and transformers takes a CPU some seconds, often longer than a small shard's work. A fork has them from
the start, and is a process of its own in all else: what it does, or how it ends, no other shard sees.

Requests come as messages over a Unix socket: JSON ``{"id", "arguments", "preload"}`` with the file descriptors of the
shard's standard input, output and error, and of what it shall hold open (the lock of its slot). The answers are
``{"id", "pid"}`` when it runs and ``{"id", "status"}`` when it ended (negative: the signal that killed it). When the
other side closes the socket, or dies, the server ends; shards end with their standard input.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

MOST_BYTES = 2**20
MOST_DESCRIPTORS = 64
STANDARD = 3
"""Standard input, output and error."""

Main = Callable[[list[str]], int]


def serve(number: int, main: Main) -> None:
    """Answer requests on the socket of this number; ``main`` runs a shard by its arguments and returns its status."""
    running: dict[int, int] = {}  # process id -> id of the request
    ended, notify = socket.socketpair()
    notify.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # so that the wake-up descriptor is written to
    signal.set_wakeup_fd(notify.fileno(), warn_on_full_buffer=False)
    with socket.socket(fileno=number) as requests, selectors.DefaultSelector() as ready:
        ready.register(requests, selectors.EVENT_READ)
        ready.register(ended, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is ended:
                    ended.recv(4096)
                    for pid, status in _ended():
                        _answer(requests, {"id": running.pop(pid), "status": status})
                    continue
                message, descriptors, _, _ = socket.recv_fds(requests, MOST_BYTES, MOST_DESCRIPTORS)
                if not message:
                    return
                request = json.loads(message)
                _preload(request["preload"])
                pid = os.fork()
                if pid == 0:
                    _become_shard([requests, ended, notify], descriptors, request["arguments"], main)
                for descriptor in descriptors:
                    os.close(descriptor)
                running[pid] = request["id"]
                _answer(requests, {"id": request["id"], "pid": pid})


def _preload(modules: Sequence[str]) -> None:
    """Load modules, unless they are there. What fails here fails again in the shard, which can say so."""
    for module in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.freeze()  # a collection in a fork would copy every page of what is loaded


def _ended() -> list[tuple[int, int]]:
    """(process id, status) of the forks that have ended since."""
    found = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def _answer(requests: socket.socket, answer: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the flow is gone; the next request says so
        requests.send(json.dumps(answer).encode())


def _become_shard(of_server: Sequence[socket.socket], descriptors: list[int], arguments: list[str], main: Main) -> None:
    """In the fork: run the shard and end the process with its status."""
    status = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for one in of_server:
            one.close()
        for standard, descriptor in enumerate(descriptors[:STANDARD]):
            os.dup2(descriptor, standard)
            os.close(descriptor)
        status = main(arguments)
    except SystemExit as end:  # of the parser of arguments
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
