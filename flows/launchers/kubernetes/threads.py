"""Calls that block, in threads of their own: asyncio's are few and the flow needs them, and a long log would keep one.

The threads are daemons, so that none of them keeps a flow from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

AHEAD = 1024
"""So many items a thread may be ahead of who takes them."""
TURN = 64
"""After so many items at a time, others in the event loop have their turn."""


async def in_thread(function: Callable[[], T]) -> T:
    """The result of ``function``, or what it raised. It runs to its end even if nobody waits any more."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if not result.done():
            result.set_exception(error) if error else result.set_result(value)  # type: ignore[arg-type]

    def work() -> None:
        value, failure = None, None
        try:
            value = function()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=work, daemon=True, name=f"kubernetes {getattr(function, '__name__', '')}").start()
    return await result


async def from_thread(items: Iterable[T]) -> AsyncIterator[T]:
    """``items``, which are waited for in a thread. Raises what they raise."""
    loop = asyncio.get_running_loop()
    arrived, abandoned = asyncio.Event(), threading.Event()
    passed: queue.Queue[tuple[Any, bool, BaseException | None]] = queue.Queue(AHEAD)

    def hand_over(item: T | None, more: bool, error: BaseException | None = None) -> None:
        while not abandoned.is_set():
            with contextlib.suppress(queue.Full):
                passed.put((item, more, error), timeout=1)
                break
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(arrived.set)

    def work() -> None:
        try:
            for item in items:
                hand_over(item, True)
                if abandoned.is_set():
                    return
        except BaseException as error:
            hand_over(None, False, error)
        else:
            hand_over(None, False)

    threading.Thread(target=work, daemon=True, name="kubernetes follow").start()
    taken = 0
    try:
        while True:
            try:
                item, more, error = passed.get_nowait()
            except queue.Empty:
                arrived.clear()
                if passed.empty():
                    await arrived.wait()
                continue
            if error:
                raise error
            if not more:
                return
            yield item
            taken += 1
            if taken % TURN == 0:
                await asyncio.sleep(0)
    finally:
        abandoned.set()
