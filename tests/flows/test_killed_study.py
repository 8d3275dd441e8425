"""A patching study that is killed at random points ends with the bytes of one that was left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows.patching import patching
from tests.flows.killing import killed_and_undisturbed
from tests.patching.planted import plant

KILLS = 6
FEWEST_SHARDS = 10


@pytest.fixture(scope="module")
def study_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    settings = plant(folder).settings(
        contrast={"prompts_per_group": 16, "top_k_per_layer": 4},
        trials={"trials_per_cell": 40, "baseline_trials": 40, "max_new_tokens": 2, "temperature": 1.0},
        confirm={"trials_per_cell": 40},
        execution={"device": "cpu", "slots": 2, "threads": 1},
    )
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_at_random_points_change_no_byte(prefect_server, study_file, tmp_path):
    killed, left, right = killed_and_undisturbed(patching, study_file, tmp_path, KILLS, seed=20)
    assert killed >= KILLS - 2
    assert len([name for name in left if name.endswith("manifest.json")]) >= FEWEST_SHARDS
    assert {name for name in left if name.endswith((".parquet", ".safetensors"))}
    assert sorted(left) == sorted(right)
    assert [name for name in left if left[name] != right[name]] == []
