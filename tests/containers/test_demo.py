"""The demo's study, smaller: containers leave the bytes that subprocesses leave, in a real S3 store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tests.containers.engine import TORCH_IMAGE, VLLM_IMAGE, need_image
from tests.flows.killing import finish, results
from tests.s3_server import S3Server

STUDY: dict[str, Any] = {
    "saes": {"layers": [25], "train": {"tokens": 6_000, "epochs": 1}},
    "contrast": {"prompts_per_group": 12, "top_k_per_layer": 6},
    "selection": {"max_survivors": 2, "min_effect": 0.0},
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
    assert set(images(tmp_path / "docker").values()) == {image}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shards_of_the_vllm_engine_run_in_its_image(prefect_server: str, tmp_path: Path) -> None:
    need_image(TORCH_IMAGE)
    need_image(VLLM_IMAGE)
    study = STUDY | {
        "selection": {"max_survivors": 1, "min_effect": 0.0},
        "trials": STUDY["trials"] | {"engine": "vllm", "trials_per_cell": 2, "baseline_trials": 2},
        "execution": STUDY["execution"] | IN_CONTAINERS,
    }
    file = tmp_path / "vllm.yaml"
    file.write_text(yaml.safe_dump(study))
    finish("patching", file, tmp_path / "store")
    for shard, image in images(tmp_path / "store").items():
        assert image.startswith(VLLM_IMAGE if shard.startswith("patching.trials/") else TORCH_IMAGE), shard
    trials = (tmp_path / "store" / "shards" / "patching.trials").iterdir()
    shards = [Shard(Store(tmp_path / "store"), f"shards/patching.trials/{folder.name}") for folder in trials]
    assert sum(shard.table("trials").num_rows for shard in shards) > 2


def images(store: Path) -> dict[str, str]:
    """The image that each finished shard ran in, by "task/hash"."""
    manifests = store.glob("shards/*/*/manifest.json")
    return {f"{path.parts[-3]}/{path.parts[-2]}": json.loads(path.read_text())["run"]["image"] for path in manifests}
