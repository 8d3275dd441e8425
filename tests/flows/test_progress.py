"""What a user sees of a run."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import socket
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterName,
    LogFilter,
    LogFilterFlowRunId,
)
from rich.console import Console
from rich.text import Text

from flows.execution import Execution
from flows.log_lines import LogLines, duration
from flows.progress import RunProgress, ShardProgress, StageProgress, watched
from flows.reports import slug
from flows.terminal import most_telling, shown
from tests.flows.processes import wait_until
from tests.flows.toy_flow import toy
from tests.toy_tasks import SquaresParams


@pytest.mark.parametrize(
    ("stage", "text", "fraction"),
    [
        (StageProgress("s"), "waiting", 0.0),
        (StageProgress("s", 3, 3, state="done"), "3 shards reused", 1.0),
        (StageProgress("s", 4, 1, 1, "running"), "2 of 4 shards, 1 of them reused", 0.5),
        (
            StageProgress("s", 2, 0, 1, "running", {"a": ShardProgress(30, 60, "trials", "layer 3")}),
            "1 of 2 shards; 1 running: 30 of 60 trials (layer 3)",
            0.75,
        ),
        (
            StageProgress("s", 2, 0, 0, "running", {"a": ShardProgress(30, 60, "t"), "b": ShardProgress(0, 60, "t")}),
            "0 of 2 shards; 2 running: 30 of 120 t",
            0.25,
        ),
        (StageProgress("s", 1, 0, 0, "running", {"a": ShardProgress()}), "0 of 1 shard; 1 running", 0.0),
        (StageProgress("s", 0, state="done"), "nothing to do", 1.0),
        (StageProgress("s", 2, 0, 1, "failed"), "1 of 2 shards; stopped", 0.5),
        (StageProgress("s", state="skipped"), "skipped", 1.0),
    ],
)
def test_a_stage_in_words(stage: StageProgress, text: str, fraction: float) -> None:
    assert stage.describe() == text
    assert stage.fraction == fraction


def test_a_run_is_the_mean_of_its_stages() -> None:
    run = RunProgress()
    run.plan(["a", "b", "c", "d"])
    run.begin("a", 2, 2).state = "done"
    run.begin("b", 2, 1)
    assert run.fraction == pytest.approx(0.375)
    assert run.describe() == "1 of 4 stages done; b: 1 of 2 shards, 1 of them reused"


def test_stages_that_are_given_up_are_over() -> None:
    run = RunProgress()
    run.plan(["a", "b", "c"])
    run.begin("a", 1, 0).state = "failed"
    run.give_up("a", ["b"])
    run.begin("c", 1, 1).state = "done"
    assert run.fraction == 1
    assert run.describe() == "1 of 3 stages done; a: 0 of 1 shard; stopped"


def test_a_low_terminal_shows_what_happens_now_and_a_high_one_everything() -> None:
    states = ["done"] * 5 + ["failed", "skipped", "running", "waiting", "running", "waiting"]
    stages = [StageProgress(str(i), state=state) for i, state in enumerate(states)]
    assert most_telling(stages, len(stages)) == stages
    assert [stage.name for stage in most_telling(stages, 4)] == ["5", "7", "8", "9"]
    assert [stage.name for stage in most_telling(stages, 1)] == ["7"]
    over = [StageProgress(str(i), state="done") for i in range(9)]
    assert most_telling(over, 3) == over


@pytest.fixture(scope="module")
def finished_run(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Name of a toy run on the server, and what the terminal showed of it."""
    store = tmp_path_factory.mktemp("store")
    screen = io.StringIO()

    async def main() -> str:
        squares = [SquaresParams(n=8 + i, chunk_size=2, sleep_s=0.2) for i in range(2)]
        once = SquaresParams(n=12, fail="transient", fail_at=2, fail_once=str(store / "once"))
        name = f"run-in-{store.name}"
        await toy.with_options(flow_run_name=name)(str(store), [*squares, once], Execution(device="cpu", slots=2))
        return name

    with shown(Console(file=screen, width=100)):
        name = asyncio.run(main())
    return name, screen.getvalue()


async def read(name: str) -> tuple[dict[str, Any], list[str]]:
    """Artifacts by key and log messages of a run, from the API."""
    async with get_client() as client:
        [run] = await client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
        artifacts = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
        logs = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])), limit=200)
    return {artifact.key: artifact for artifact in artifacts}, [log.message for log in logs]


def test_the_ui_shows_progress_and_the_shards_own_words(finished_run: tuple[str, str]) -> None:
    name, _ = finished_run
    artifacts, _ = asyncio.run(read(name))
    gpus = slug(f"gpus {socket.gethostname()}")
    assert sorted(artifacts) == sorted([gpus, "toy-progress", "toy-stage-02-squares", "toy-stage-03-sum"])
    assert artifacts["toy-stage-02-squares"].data == 100
    assert artifacts["toy-stage-02-squares"].description == "3 of 3 shards"

    def logged(text: str) -> bool:
        return any(text in message for message in asyncio.run(read(name))[1])

    wait_until(lambda: logged("2 of 3 chunks are there from an earlier run"), 10, "the shard's log is in the UI")
    assert logged("there are 3 lists of squares")
    assert logged("squares: reused 0 of 3 shards")
    assert logged("Retry 1/3 will start")


def test_the_terminal_shows_every_stage() -> None:
    screen = io.StringIO()
    with shown(Console(file=screen, width=100, height=30, force_terminal=True)):
        run = watched.get()
        assert run is not None
        run.plan(["squares", "sum"])
        run.begin("squares", 3, 3).end("done")
        run.tell("what [squares] left")
        run.begin("sum", 1, 0).end("failed")
    lines = [line.split() for line in Text.from_ansi(screen.getvalue()).plain.splitlines() if line.strip()]
    assert ["what", "[squares]", "left"] in lines
    assert lines[-2][:2] == ["✓", "squares"]
    assert lines[-2][3:] == ["3", "shards", "reused"]
    assert lines[-1][:2] == ["✗", "sum"]


def test_a_log_gets_a_line_when_a_stage_begins_and_one_when_it_ends(finished_run: tuple[str, str]) -> None:
    _, log = finished_run
    lines = [re.fullmatch(r"\[0:00:\d\d\] (.*)", line) for line in log.splitlines()]
    said = [re.sub(r"\d+(\.\d)? s;", "N s;", line[1]) for line in lines if line]
    assert len(said) == len(lines)
    assert said == [
        "squares: begins; 3 shards",
        "squares: done after N s; 3 of 3 shards",
        "there are 3 lists of squares",
        "sum: begins; 1 shard",
        "sum: done after N s; 1 of 1 shard",
    ]


def test_what_is_waited_for_is_said_at_once() -> None:
    for terminal in (True, False):
        said = io.StringIO()
        with shown(Console(file=said, force_terminal=terminal, width=40)):
            logging.getLogger("tomograph.store").warning("s3://bucket/x: connection refused; trying again")
            assert "s3://bucket/x: connection refused; trying again" in said.getvalue()


def test_a_log_says_now_and_then_how_far_it_is_and_how_long_it_may_take() -> None:
    run, log = RunProgress(), io.StringIO()
    run.plan(["a", "b", "c"])
    lines = LogLines(run, Console(file=log), every=30)
    stage = run.begin("a", 4, 2)
    stage.began -= 100
    lines.look(0)
    for now, done in ((10, 30), (20, 45), (30, 60), (45, 70), (60, 75)):  # resumed at 30, which tells no speed
        stage.running["x"] = ShardProgress(done, 120, "trials")
        lines.look(now)
    stage.end("failed")
    run.give_up("a", ["b"])
    run.begin("c", 2, 2).end("done")
    lines.look(61)
    assert [line.partition("] ")[2] for line in log.getvalue().splitlines()] == [
        "a: begins; 4 shards, 2 of them reused",
        "a: 2 of 4 shards, 2 of them reused; 1 running: 60 of 120 trials; 62% after 1 min 40 s, about 2 min 0 s left",
        "a: 2 of 4 shards, 2 of them reused; 1 running: 75 of 120 trials; 66% after 1 min 40 s, about 3 min 3 s left",
        "a: failed after 1 min 40 s; 2 of 4 shards, 2 of them reused; stopped",
        "b: skipped",
        "c: 2 shards reused",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")],
)
def test_a_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
