from __future__ import annotations

from pathlib import Path

import pytest

from tasks.models.fingerprint import fingerprint
from tasks.models.spec import ModelRef
from tasks.sae.spec import SaeTrainParams, TrainSettings
from tasks.text.prose import library_fingerprint
from tests.models.tiny import save_tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the product's own."""
    monkeypatch.setenv("TOMOGRAPH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """A random Llama of 4 layers and 64 dimensions, whose tokenizer begins every text with <s>."""
    return ModelRef(source=str(save_tiny_model(tmp_path_factory.mktemp("models") / "llama")))


@pytest.fixture(scope="session")
def params(tiny_model: ModelRef) -> SaeTrainParams:
    """Training that takes a second: layers 1 and 3, 128 features."""
    return SaeTrainParams(
        model=tiny_model,
        model_fingerprint=fingerprint(tiny_model),
        layers=[1, 3],
        settings=TrainSettings(expansion=2, k=4, tokens=20_000),
        texts=[f"Round {n}: Bet ${10 * n}, Result: {'Win' if n % 3 else 'Loss'}" for n in range(40)],
        corpus_fingerprint=library_fingerprint(),
    )
