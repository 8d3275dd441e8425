"""The demo's study, smaller: containers leave the bytes that subprocesses leave, in a real S3 store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containers.engine import TORCH_IMAGE, need_image
from tests.flows.killing import finish, results
from tests.s3_server import S3Server

STUDY: dict[str, Any] = {
    "model": {"dtype": "bfloat16"},
    "saes": {"layers": [15], "train": {"tokens": 12_000, "epochs": 1, "expansion": 4}},
    "contrast": {"prompts_per_group": 24, "top_k_per_layer": 6},
    "selection": {"max_survivors": 2},
    "trials": {"trials_per_cell": 8, "baseline_trials": 8, "max_new_tokens": 8},
    "confirm": {"trials_per_cell": 8},
    "execution": {"device": "cpu", "slots": 1, "threads": 2},
}
IN_CONTAINERS = {"launcher": "docker", "docker": {"network": "host"}, "container": {"memory": "8GiB"}}


def study_file(folder: Path, name: str, **execution: Any) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(STUDY | {"execution": STUDY["execution"] | execution}))
    return file


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_study_leaves_the_same_bytes_in_containers_and_subprocesses(
    prefect_server: str, s3_server: S3Server, s3_url: str, tmp_path: Path
) -> None:
    client = need_image(TORCH_IMAGE)
    finish("patching", study_file(tmp_path, "process"), f"{s3_url}/process")
    finish("patching", study_file(tmp_path, "docker", **IN_CONTAINERS), f"{s3_url}/docker")

    for name in ("process", "docker"):
        s3_server.filesystem().get(f"{s3_url}/{name}", str(tmp_path / name), recursive=True)
    process, docker = results(tmp_path / "process"), results(tmp_path / "docker")
    assert len([name for name in process if name.endswith("manifest.json")]) >= 8
    assert {Path(name).suffix for name in process} >= {".parquet", ".safetensors", ".json"}
    assert sorted(process) == sorted(docker)
    assert [name for name in process if process[name] != docker[name]] == []

    image = f"{TORCH_IMAGE}@{client.images.get(TORCH_IMAGE).id}"
    ran = [json.loads(path.read_text())["run"] for path in (tmp_path / "docker").rglob("manifest.json")]
    assert {run["image"] for run in ran} == {image}
