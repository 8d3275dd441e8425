"""What a user writes about containers."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from flows.execution import Execution
from flows.launchers.images import image_of, version
from flows.launchers.settings import ContainerSettings, Volume, size_in_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512MiB", 512 * 2**20),
        ("16G", 16 * 2**30),
        ("1.5 gib", 3 * 2**29),
        ("64kB", 64 * 2**10),
        ("2T", 2**41),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "many", "-1G", "16 gigabytes", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="is no size; write 16GiB"):
        ContainerSettings(memory=text)


def test_volumes() -> None:
    assert Volume.of("/srv/models:/models:ro") == Volume(source="/srv/models", path="/models", read_only=True)
    assert Volume.of("cache:/cache/") == Volume(source="cache", path="/cache", read_only=False)


def test_two_volumes_at_one_place_are_refused() -> None:
    with pytest.raises(ValidationError, match="several volumes at /models; give each a place of its own"):
        ContainerSettings(volumes=["/a:/models", "b:/models/:ro", "c:/data"])


@pytest.mark.parametrize("text", ["", "/models", ":/models", "a:b", "a:/b:rx"])
def test_what_is_no_volume_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="is no volume; write SOURCE:/path"):
        ContainerSettings(volumes=[text])


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Execution.model_validate({"launcher": "docker", "docker": {"nettwork": "host"}})


def test_the_image_of_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOMOGRAPH_VLLM_IMAGE", raising=False)
    assert image_of("vllm", "cpu", {}) == f"tomograph-vllm:{version()}-cpu"
    assert image_of("vllm", "cuda", {}) == f"tomograph-vllm:{version()}-cuda"
    monkeypatch.setenv("TOMOGRAPH_VLLM_IMAGE", "registry.example/vllm:1")
    assert image_of("vllm", "cuda", {}) == "registry.example/vllm:1"
    assert image_of("vllm", "cuda", {"vllm": "mine"}) == "mine"
