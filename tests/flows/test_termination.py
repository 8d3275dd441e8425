"""SIGTERM ends a flow wherever its event loop is when it arrives."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Prefect's way of taking the signal, and a loop that is inside a callback whenever it comes.
PROGRAM = """
import asyncio, os, signal, sys, threading
from contextlib import nullcontext
from prefect.exceptions import TerminationSignal
from flows.termination import ended_by_sigterm

def raising(*_):
    raise TerminationSignal(signal=signal.SIGTERM)

signal.signal(signal.SIGTERM, raising)
ended = []

def terminated(loop):
    loop.call_later(0.02, terminated, loop)
    os.kill(os.getpid(), signal.SIGTERM)

async def shard():
    try:
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(0.1)  # stopping takes time, during which more signals come
        ended.append("shard")

async def flow():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    loop.call_soon(terminated, loop)
    with ended_by_sigterm() if sys.argv[1] == "ours" else nullcontext():
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(shard())

threading.Timer(5, os._exit, [9]).start()
try:
    asyncio.run(flow())
except TerminationSignal:
    assert signal.getsignal(signal.SIGTERM) is raising, "the handler is put back"
    print("ended", len(ended), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(("handler", "ended"), [("ours", True), ("prefect's", False)])
def test_a_signal_that_arrives_in_a_callback_ends_every_shard(handler: str, ended: bool) -> None:
    """The second case shows what the first one is for."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, handler], capture_output=True, text=True, timeout=60)
    assert (done.stdout == "ended 3\n") is ended, done.stdout + done.stderr
