"""How a patching study is cut into shards."""

from __future__ import annotations

import pytest

from flows.patching import study_name
from flows.patching_plan import (
    FEWEST_TRIALS_PER_SHARD,
    MOST_TRIALS_PER_SHARD,
    SHARDS_WANTED,
    Block,
    trial_blocks,
    trial_shards,
)
from flows.planning import cut
from tasks.models.spec import ModelRef
from tasks.patching.spec import ScenarioRef


@pytest.mark.parametrize(("total", "pieces"), [(0, 3), (1, 1), (7, 3), (8, 3), (5, 9), (1000, 7)])
def test_cuts_cover_everything_once_in_nearly_equal_pieces(total: int, pieces: int) -> None:
    ranges = cut(total, pieces)
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(total))
    sizes = [stop - start for start, stop in ranges]
    assert all(sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert len(ranges) == min(total, pieces)


@pytest.mark.parametrize("trials", [1, 4_096, 4_097, 20_000, 131_072, 131_073, 669_000])
def test_shards_of_trials_have_a_sensible_size(trials: int) -> None:
    pieces = trial_shards(trials)
    assert trials / pieces <= MOST_TRIALS_PER_SHARD
    assert pieces <= SHARDS_WANTED or trials / (pieces - 1) > MOST_TRIALS_PER_SHARD
    assert pieces == 1 or trials / pieces > FEWEST_TRIALS_PER_SHARD / 2


@pytest.mark.parametrize(("candidates", "per_cell"), [(0, 30), (8, 30), (1, 5_000), (3, 4_000), (300, 30), (2_787, 30)])
def test_blocks_hold_every_trial_of_every_candidate_once(candidates: int, per_cell: int) -> None:
    trials = sorted(
        (candidate, trial)
        for block in trial_blocks(candidates, per_cell, cells_per_candidate=8)
        for candidate in range(block.start, block.stop)
        for trial in range(block.trial_start, block.trial_stop)
    )
    assert trials == [(candidate, trial) for candidate in range(candidates) for trial in range(per_cell)]


def test_a_small_study_is_one_shard() -> None:
    assert trial_blocks(8, 30, cells_per_candidate=8) == [Block(0, 8, 0, 30)]


def test_one_candidate_with_many_trials_is_cut_by_trials() -> None:
    blocks = trial_blocks(1, 16_000, cells_per_candidate=2)
    assert len(blocks) == 8
    assert {(block.start, block.stop) for block in blocks} == {(0, 1)}


@pytest.mark.parametrize(
    ("model", "scenario", "name"),
    [
        ("embedded:smollm2-135m-instruct", "slot_machine", "smollm2-135m-instruct-slot-machine"),
        ("meta-llama/Llama-3.1-8B", "s3://bucket/My Game.yaml", "llama-3-1-8b-my-game"),
        ("/data/models/own/", "own.yml", "own-own"),
    ],
)
def test_studies_are_named_after_model_and_scenario(model: str, scenario: str, name: str) -> None:
    assert study_name(ModelRef(source=model), ScenarioRef(source=scenario)) == name
