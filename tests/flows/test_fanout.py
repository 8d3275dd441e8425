"""The fan-out on a real Prefect server, with real shards."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prefect import flow

from flows.execution import Execution
from flows.fanout import FanOut, StageFailed
from tasks.artifacts.catalog import finished
from tasks.artifacts.manifest import Manifest, write_manifest
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.errors import BadInput, CorruptObject
from tests.flows.fake_gpus import write_nvidia_smi
from tests.flows.processes import Census, labelled
from tests.flows.toy_flow import CHECK, SQUARES, toy
from tests.toy_tasks import CheckParams, SquaresParams

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

NOW = SquaresParams(n=2)


def run(store: Path, squares: list[SquaresParams], **execution: object) -> dict[str, int]:
    return asyncio.run(toy(str(store), squares, Execution(device="cpu", **{"slots": 2, **execution})))


def test_stages_run_and_a_second_run_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime_folder: Path
) -> None:
    squares = [SquaresParams(n=4 + i) for i in range(3)]
    assert run(tmp_path, squares) == {"numbers": 4 + 5 + 6}
    assert list(runtime_folder.glob("cpu-*"))
    monkeypatch.setenv("TOMOGRAPH_RUNTIME_DIR", str(tmp_path / "second"))
    assert run(tmp_path, squares) == {"numbers": 4 + 5 + 6}
    assert not list((tmp_path / "second").glob("cpu-*")), "a slot was leased although everything was finished"

    damaged = next((tmp_path / "shards" / "toy.squares").glob("*/*.parquet"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(
        CorruptObject, match=rf"{damaged} has changed since it was written; .*verify {tmp_path} --repair"
    ):
        run(tmp_path, squares)


def test_a_shard_asked_for_twice_runs_once(tmp_path: Path) -> None:
    assert run(tmp_path, [NOW]) == {"numbers": 2}
    store = Store(tmp_path)
    assert len(list((tmp_path / "shards/toy.squares").iterdir())) == 1
    assert finished(store, [SQUARES.spec(NOW), SQUARES.spec(NOW)])


def test_a_look_at_the_outside_world_is_repeated(tmp_path: Path) -> None:
    seen = tmp_path / "seen.txt"
    execution = Execution(device="cpu", slots=1)
    sizes = []
    for text in ("a", "abc"):
        seen.write_text(text)
        asyncio.run(toy(str(tmp_path), [NOW], execution, check=str(seen)))
        spec = CHECK.spec(CheckParams(path=str(seen)))
        sizes.append(Shard(Store(tmp_path), spec.path).json("file")["size"])
    assert sizes == [1, 3]


def test_never_more_shards_than_slots_even_with_two_flows(tmp_path: Path) -> None:
    async def two_flows() -> None:
        execution = Execution(device="cpu", slots=2)
        jobs = [[SquaresParams(n=1 + i + 10 * flow, sleep_s=0.3) for i in range(3)] for flow in range(2)]
        await asyncio.gather(*(toy(str(tmp_path / str(i)), squares, execution) for i, squares in enumerate(jobs)))

    with Census(str(tmp_path)) as census:
        asyncio.run(two_flows())
    assert census.most == 2


@pytest.mark.parametrize("fail", ["transient", "kill"])
def test_what_passes_is_retried(tmp_path: Path, fail: str) -> None:
    once = tmp_path / "failed"
    squares = SquaresParams(n=12, fail=fail, fail_at=2, fail_once=str(once))
    assert run(tmp_path, [squares]) == {"numbers": 12}
    assert once.exists()
    manifest = Shard(Store(tmp_path), SQUARES.spec(squares).path).manifest
    assert manifest.run["reused_chunks"] == 2


def test_bad_input_stops_the_stage_at_once_with_its_message(tmp_path: Path) -> None:
    started = time.monotonic()
    bad, slow = SquaresParams(n=4, fail="bad_input"), SquaresParams(n=400, sleep_s=1)
    with pytest.raises(StageFailed, match="told to refuse its input; use fail='no'") as failed:
        run(tmp_path, [slow, bad, SquaresParams(n=3)])
    assert "squares 2/3" in str(failed.value)
    assert time.monotonic() - started < 30
    assert not labelled(str(tmp_path))


def test_a_bug_shows_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="told to have a bug") as failed:
        run(tmp_path, [SquaresParams(n=4, fail="bug")])
    assert "toy_tasks.py" in str(failed.value)
    assert "ZeroDivisionError" in str(failed.value)


def test_others_finish_when_a_shard_is_lost_for_good(tmp_path: Path) -> None:
    others = [SquaresParams(n=i) for i in (5, 6, 7)]
    with pytest.raises(StageFailed, match=r"squares 1/4 .* was killed by SIGKILL"):
        run(tmp_path, [SquaresParams(n=4, fail="kill"), *others], retries=0)
    specs = [SQUARES.spec(params, seed=i) for i, params in enumerate(others, start=1)]
    assert len(finished(Store(tmp_path), specs)) == 3


def test_stages_side_by_side_share_the_slots_and_fail_on_their_own(tmp_path: Path) -> None:
    store, execution = Store(tmp_path), Execution(device="cpu", slots=2)
    good = [SquaresParams(n=4 + i, sleep_s=0.3) for i in range(4)]

    @flow
    async def both() -> list[object]:
        async with FanOut(store, execution) as fan:
            bad = fan.run("bad", [SQUARES.spec(SquaresParams(fail="bad_input"))])
            fine = fan.run("fine", [SQUARES.spec(params) for params in good])
            return await asyncio.gather(bad, fine, return_exceptions=True)

    with Census(str(tmp_path)) as census:
        failed, finished_ones = asyncio.run(both())
    assert isinstance(failed, StageFailed)
    assert failed.field == "params.fail"
    assert [manifest.counts["numbers"] for manifest in finished_ones] == [4, 5, 6, 7]  # type: ignore[attr-defined]
    assert census.most == 2


@pytest.mark.parametrize(("gpus", "says"), [(2, "execution.slots = 1: shards of squares are to get 2 GPUs"), (1, None)])
def test_more_gpus_than_there_are_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, says: str | None
) -> None:
    """`nvidia-smi` shows one GPU; torch, in the shard, sees none."""
    write_nvidia_smi(tmp_path, monkeypatch, "0, GPU-aaaa")

    @flow
    async def one() -> None:
        async with FanOut(Store(tmp_path), Execution(device="cuda")) as fan:
            await fan.run("squares", [SQUARES.spec(NOW)], gpus=gpus)

    expected = pytest.raises(BadInput, match=says) if says else pytest.raises(StageFailed, match=r"torch .* sees 0")
    with expected:
        asyncio.run(one())


def test_a_thousand_finished_shards_are_found_quickly(tmp_path: Path) -> None:
    store = Store(tmp_path)
    specs = [SQUARES.spec(NOW, seed=seed) for seed in range(1000)]
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda spec: write_manifest(store, Manifest.of(spec, {}, {}, {})), specs))

    @flow
    async def find() -> tuple[int, float]:
        async with FanOut(store, Execution(device="cpu")) as fan:
            started = time.monotonic()
            manifests = await fan.run("squares", specs)
            return len(manifests), time.monotonic() - started

    found, seconds = asyncio.run(find())
    assert found == 1000
    assert seconds < 10
