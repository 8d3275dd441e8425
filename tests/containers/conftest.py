"""A real engine, a real Prefect server, and imaginary GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from flows.holders import domain
from tests.containers.engine import FLOWS_IMAGE, labelled, need_image
from tests.flows.conftest import prefect_server, runtime_folder  # noqa: F401
from tests.flows.fake_gpus import write_nvidia_smi

GPUS = [f"GPU-{letter * 4}" for letter in "abcd"]
PLUGINS = "tests.toy_tasks,tests.containers.gpu_task"


@pytest.fixture
def toy_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[docker.DockerClient]:
    """The engine, with the image that runs toy tasks; no container of theirs may be left behind."""
    client = need_image(FLOWS_IMAGE)
    monkeypatch.setenv("TOMOGRAPH_PLUGINS", PLUGINS)
    yield client
    assert labelled(domain=domain()) == []


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with four imaginary GPUs: nvidia-smi shows them, and each is a file of this folder."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    write_nvidia_smi(tmp_path, monkeypatch, "\n".join(f"{i}, {uuid}" for i, uuid in enumerate(GPUS)))
    folder = tmp_path / "gpus"
    folder.mkdir()
    for uuid in GPUS:
        (folder / uuid).touch(0o666)
    return folder
