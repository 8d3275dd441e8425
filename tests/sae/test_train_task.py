"""The task `sae.train` as the runner runs it: outputs, the same bytes, resumption, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tasks.runner import run_shard
from tasks.sae.load import load_sae
from tasks.sae.run import export_trained, load_trained
from tasks.sae.sae import Threshold
from tasks.sae.side_by_side import Stopped, side_by_side
from tasks.sae.spec import KINDS, SaeSource, SaeTrainParams
from tasks.spec import TaskSpec


@pytest.fixture(scope="module")
def spec(params: SaeTrainParams) -> TaskSpec:
    [kind] = KINDS
    return kind.spec(params, seed=5)


@pytest.fixture(scope="module")
def shard_and_cache(spec: TaskSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shard, Path]:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOMOGRAPH_CACHE", str(folder / "cache"))
        store = Store(folder / "store")
        run_shard(store, spec)
    return Shard(store, spec.path), folder / "cache"


@pytest.fixture
def shard(shard_and_cache: tuple[Shard, Path]) -> Shard:
    return shard_and_cache[0]


def test_outputs(shard: Shard) -> None:
    rows = shard.table("quality").to_pylist()
    assert [row["layer"] for row in rows] == [1, 3]
    for row in rows:
        assert 0.2 < row["variance_explained"] < 1
        assert 0.2 < row["variance_explained_own_texts"] < 1
        assert row["l0"] == pytest.approx(4, rel=0.3)
        assert 0 <= row["dead_share"] < 1
        assert (row["d_model"], row["d_sae"], row["k"], row["convention"]) == (64, 128, 4, "raw_residual")
        assert 0.85 < row["tokens"] / 20_000 < 0.9
        assert row["held_out_tokens"] == pytest.approx(2_000, rel=0.2)
    sae = load_trained(shard, 3)
    assert (sae.layer, sae.d_model, sae.d_sae, sae.convention) == (3, 64, 128, "raw_residual")
    assert isinstance(sae.gate, Threshold)
    assert float(sae.gate.theta[0]) == pytest.approx(rows[1]["threshold"])
    assert shard.counts == {"layers": 2}
    with pytest.raises(BadInput, match=r"trained for layers \[1, 3\]"):
        load_trained(shard, 2)


def test_nothing_is_left_in_the_cache(shard_and_cache: tuple[Shard, Path]) -> None:
    assert not any((shard_and_cache[1] / "harvests").iterdir())


def test_the_same_bytes_again_with_any_number_of_threads(shard: Shard, spec: TaskSpec, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = run_shard(Store(tmp_path / "again"), spec)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert again.digest == shard.manifest.digest


def test_an_interrupted_run_goes_on(shard: Shard, spec: TaskSpec, tmp_path: Path, cache: Path) -> None:
    """Ended after its first layer: the second run trains the other one, reads no text again, and gives the same."""
    store = Store(tmp_path / "interrupted")

    def end_after_a_layer(event: dict[str, Any]) -> None:
        if event["event"] == "log" and event["message"].startswith("layer 1:"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_shard(store, spec, report=end_after_a_layer)
    [read] = cache.rglob("00000/vectors.safetensors")
    before = read.stat().st_ino
    events: list[dict[str, Any]] = []

    def follow(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "log" and event["message"].startswith("layer"):
            assert read.stat().st_ino == before

    manifest = run_shard(store, spec, report=follow)
    assert manifest.digest == shard.manifest.digest
    assert manifest.run["reused_chunks"] == 1
    assert [e["message"][:8] for e in events if e["event"] == "log"][1:] == ["layer 3:"]


def test_progress_counts_tokens(store: Store, spec: TaskSpec) -> None:
    events: list[dict[str, Any]] = []
    run_shard(store, spec, report=events.append)
    progress = [event for event in events if event["event"] == "progress"]
    assert progress
    assert {event["unit"] for event in progress} == {"tokens"}
    assert len({event["total"] for event in progress}) == 1
    done = [event["done"] for event in progress]
    assert done == sorted(done)
    assert done[-1] <= progress[0]["total"]


def test_an_exported_folder_is_read_as_saelens_format(shard: Shard, tmp_path: Path) -> None:
    folder = export_trained(shard, 3, tmp_path / "exported")
    sae = load_sae(SaeSource(kind="saelens", location=str(folder), layers=[3]), 3, d_model=64)
    trained = load_trained(shard, 3)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(sae, name), getattr(trained, name))
    assert torch.equal(sae.gate.theta, trained.gate.theta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_fingerprint": "folder-of-another"}, "the model changed"),
        ({"corpus_fingerprint": "another"}, "same release"),
        ({"layers": [1, 4]}, "blocks 0 to 3"),
        ({"layers": [1, 1]}, "named once"),
        ({"layers": []}, "blocks 0 to 3"),
    ],
)
def test_bad_input_is_refused(store: Store, params: SaeTrainParams, change: dict, message: str) -> None:
    [kind] = KINDS
    with pytest.raises(BadInput, match=message):
        run_shard(store, kind.spec(params.model_copy(update=change)))


def test_more_features_than_tokens_are_refused(store: Store, params: SaeTrainParams) -> None:
    [kind] = KINDS
    settings = params.settings.model_copy(update={"d_sae": 20_000})
    with pytest.raises(BadInput, match=r"settings\.tokens"):
        run_shard(store, kind.spec(params.model_copy(update={"settings": settings})))


def test_work_that_is_not_wanted_any_more_stops() -> None:
    def endless(item: int, check) -> None:
        while True:
            check()

    with pytest.raises(ZeroDivisionError), side_by_side(endless, [0, 1, 2], workers=2):
        1 / 0  # noqa: B018


def test_the_first_error_reaches_who_waits() -> None:
    def work(item: int, check) -> int:
        if item == 1:
            raise BadInput("item", item, "fails", "leave it out")
        return torch.get_num_threads()

    with side_by_side(work, [0, 1], workers=2) as result:
        assert result(0) == 1
        with pytest.raises(BadInput, match="fails"):
            result(1)
    assert issubclass(Stopped, RuntimeError)
