"""Sweeps of outlier studies, with a process for each shard, that are interrupted or killed."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from flows.outliers import outliers
from tests.flows.killing import killed_and_undisturbed, start
from tests.flows.processes import labelled, wait_until
from tests.models.tiny import save_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

KILLS = 4
SHARDS = 9
"""Four for each of two models, and the report."""


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    models = [str(save_tiny_model(folder / name, "llama", seed=seed)) for seed, name in enumerate(("one", "other"))]
    study = {
        "models": models,
        "text": {"length": 64, "sequences": 24},
        "criteria": {"threshold": 2.0},  # what the tiny models' norms give exceeds it here and there
        "ablation": {"sequences": 4, "random_draws": 2},
        "batch_size": 2,
        "execution": {"device": "cpu", "slots": 2, "threads": 1},
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    return file


def test_models_run_side_by_side_and_an_interrupted_sweep_stops_their_shards(study_file: Path, tmp_path: Path) -> None:
    process = start("outliers", study_file, tmp_path / "store", subprocess.PIPE)
    wait_until(lambda: len(labelled(str(tmp_path))) == 2, 60, "shards of both models run")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert not labelled(str(tmp_path))


@pytest.mark.timeout(1800)
def test_kills_at_random_points_change_no_byte(study_file: Path, tmp_path: Path) -> None:
    killed, left, right = killed_and_undisturbed(outliers, study_file, tmp_path, KILLS, seed=4)
    assert killed >= KILLS - 1
    for name in ("undisturbed", "disturbed"):
        assert len(list(tmp_path.glob(f"{name}/shards/*/*/manifest.json"))) == SHARDS
    assert len([name for name in left if name.endswith("final_analysis_results.json")]) == 2
    assert sorted(left) == sorted(right)
    assert [name for name in left if left[name] != right[name]] == []
