"""A patching study that is killed at random points ends with the bytes of one that was left alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest
import yaml

from tests.flows.processes import labelled, wait_until
from tests.patching.planted import plant

KILLS = 10
FEWEST_SHARDS = 10


@pytest.fixture(scope="module")
def study_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    settings = plant(folder).settings(
        contrast={"prompts_per_group": 16, "top_k_per_layer": 4},
        trials={"trials_per_cell": 40, "baseline_trials": 40, "max_new_tokens": 2, "temperature": 1.0},
        confirm={"trials_per_cell": 40},
    )
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def start(study_file: Path, store: Path, output: IO[str] | int) -> subprocess.Popen:
    command = [sys.executable, "-m", "flows", "patching", "--config", str(study_file), "--store", str(store)]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finish(study_file: Path, store: Path) -> None:
    process = start(study_file, store, subprocess.PIPE)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


def results(store: Path) -> dict[str, bytes]:
    """Everything that a study leaves behind, without what says when and where it ran.

    That is the `run` part of manifests and the report's block of the same name; the report's own object is named
    after its bytes, so its manifest and name are left out and its page is compared from `reports/`.
    """
    found = {}
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        name, data = str(path.relative_to(store)), path.read_bytes()
        if "/report.patching/" in f"/{name}" and ("report" in path.name or path.name == "manifest.json"):
            continue
        if path.name == "manifest.json":
            manifest = json.loads(data)
            manifest.pop("run")
            data = json.dumps(manifest, sort_keys=True).encode()
        if path.name == "report.html":
            data = re.sub(rb'<script type="application/json" id="run">.*?</script>', b"", data, flags=re.DOTALL)
        found[name] = data
    return found


def files(store: Path) -> int:
    return sum(path.is_file() for path in store.rglob("*"))


def run_until_killed(study_file: Path, store: Path, rng: random.Random, whom: str) -> bool:
    """Start the study, and kill the flow or one of its shards soon after a few more files have appeared.

    True if something was killed before the study came to its end.
    """
    log = store.with_suffix(".log").open("w")
    process = start(study_file, store, log)
    enough = files(store) + rng.randint(1, 4)
    while process.poll() is None and files(store) < enough:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.6))
    if process.poll() is not None:
        return False
    if whom == "shard":
        for shard in labelled(str(store))[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(shard.pid, signal.SIGKILL)
        time.sleep(rng.uniform(0, 0.3))
    process.kill()
    process.wait()
    wait_until(lambda: not labelled(str(store)), 20, "shards of a killed flow end")
    return True


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_points_change_no_byte(prefect_server, study_file, tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    finish(study_file, undisturbed)

    rng = random.Random(20)
    killed = [
        run_until_killed(study_file, disturbed, rng, "shard" if number % 2 else "flow") for number in range(KILLS)
    ]
    finish(study_file, disturbed)

    assert sum(killed) >= KILLS - 2
    left, right = results(undisturbed), results(disturbed)
    assert len([name for name in left if name.endswith("manifest.json")]) >= FEWEST_SHARDS
    assert {name for name in left if name.endswith((".parquet", ".safetensors"))}
    assert sorted(left) == sorted(right)
    assert [name for name in left if left[name] != right[name]] == []
