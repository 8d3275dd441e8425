"""A flow sees of a shard in a thread what it sees of one in a process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flows.launchers.base import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_TRANSIENT, Exit, Launcher, ShardLost
from flows.launchers.process import ProcessLauncher
from flows.slots import Slot, SlotPool
from tasks.artifacts.catalog import finished
from tasks.artifacts.store import Store
from tests.flows.in_process import InProcessLauncher, ShardThread
from tests.flows.launchers import driving
from tests.toy_tasks import KINDS, SquaresParams

pytestmark = pytest.mark.usefixtures("toy_tasks")

[SQUARES] = [kind for kind in KINDS if kind.name == "toy.squares"]


def ended(launcher: Launcher[Any], store: Path, params: SquaresParams, act: Any = None) -> tuple[list[dict], Exit]:
    lease = SlotPool([Slot("cpu-0", None, 1)]).try_lease()
    assert lease is not None
    with lease:
        return asyncio.run(driving.driven(launcher, driving.run_of(Store(store), SQUARES.spec(params)), lease, act))


def told(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events but for progress that is throttled by the clock, and the places of code in a traceback."""
    return [
        {key: value for key, value in event.items() if key != "traceback"}
        for event in events
        if event["event"] != "progress" or event["done"] == event["total"]
    ]


@pytest.mark.parametrize(
    ("fail", "code", "field"),
    [
        ("no", 0, None),
        ("bad_input", EXIT_BAD_INPUT, "params.fail"),
        ("transient", EXIT_TRANSIENT, None),
        ("bug", EXIT_FAILED, None),
    ],
)
def test_events_and_ends_are_those_of_a_process(tmp_path: Path, fail: Any, code: int, field: str | None) -> None:
    params = SquaresParams(n=8, fail=fail)
    (of_thread, thread), (of_process, process) = (
        ended(launcher, tmp_path / name, params)
        for name, launcher in (("thread", InProcessLauncher()), ("process", ProcessLauncher()))
    )
    assert told(of_thread) == told(of_process)
    assert thread.code == process.code == code
    ours, theirs = thread.error(), process.error()
    assert type(ours) is type(theirs)
    assert getattr(ours, "field", None) == getattr(theirs, "field", None) == field
    assert str(ours).split("\n")[0] == str(theirs).split("\n")[0]
    assert bool(finished(Store(tmp_path / "thread"), [SQUARES.spec(params)])) is (fail == "no")


def test_a_shard_ends_when_it_is_told_to(tmp_path: Path) -> None:
    launcher = InProcessLauncher()

    async def stop(handle: ShardThread) -> None:
        await launcher.stop(handle)

    events, end = ended(launcher, tmp_path, SquaresParams(n=400, sleep_s=0.1), stop)
    assert isinstance(end.error(), ShardLost)
    assert events[-1]["event"] == "failed"
