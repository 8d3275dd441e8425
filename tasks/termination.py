"""How a shard's process ends before its work is done: quickly, and leaving nothing half written.

SIGTERM raises ``Terminated`` in the main thread, so that the writers clean up. A main thread that is busy in
a library and doesn't come back in time is ended all the same.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import Any

GRACE_SECONDS = 3.0


class Terminated(BaseException):
    """The process was told to end."""


def handle_termination(exit_code: int) -> None:
    """Let SIGTERM end the process within ``GRACE_SECONDS``, with ``exit_code`` if the main thread is stuck."""
    # The interpreter writes to this socket as soon as the signal arrives, even while a library holds the
    # main thread and no Python handler can run.
    arrived, notify = socket.socketpair()
    notify.setblocking(False)
    signal.set_wakeup_fd(notify.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(arrived, notify, exit_code), daemon=True).start()
    signal.signal(signal.SIGTERM, _terminate)


def ignore_termination() -> None:
    """Let SIGTERM no longer interrupt: the process is ending by itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_with_parent() -> None:
    """End the process when its standard input is closed, as the kernel does when the parent dies."""
    threading.Thread(target=_await_end_of_input, daemon=True).start()


def _terminate(number: int, frame: Any) -> None:
    ignore_termination()  # once is enough: nothing may interrupt the cleaning up
    raise Terminated(f"the process was ended by {signal.Signals(number).name}")


def _watch(arrived: socket.socket, notify: socket.socket, exit_code: int) -> None:
    while signal.SIGTERM not in arrived.recv(64):
        pass
    time.sleep(GRACE_SECONDS)
    os._exit(exit_code)


def _await_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
