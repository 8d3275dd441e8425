"""SIGTERM ends a flow through its own task, so that each of its shards is stopped on the way."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator

from prefect.exceptions import TerminationSignal


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Within the body, SIGTERM cancels the task that entered it, which then ends with Prefect's TerminationSignal.

    Prefect's own handler raises that wherever the main thread happens to be: in a callback of the event loop it is
    logged and forgotten, and in another task it ends that one only. Outside the main thread nothing changes.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGTERM)
    arrived = False

    def end() -> None:
        nonlocal arrived
        if not arrived and task is not None:  # a second one must not interrupt the cleaning up
            arrived = True
            task.cancel()

    try:
        loop.add_signal_handler(signal.SIGTERM, end)
    except (RuntimeError, ValueError, NotImplementedError):
        yield
        return
    try:
        yield
    except asyncio.CancelledError:
        if not arrived:
            raise
        raise TerminationSignal(signal=signal.SIGTERM) from None
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
