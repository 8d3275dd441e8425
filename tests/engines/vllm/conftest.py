"""Tiny models in folders, as vLLM wants them, and one engine at a time over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.engines.bank import Bank
from tasks.engines.interface import Trial
from tasks.engines.vllm.engine import VllmEngine
from tasks.models.layout import Layout
from tests.engines.conftest import Bench, random_sae
from tests.engines.reference import Reference
from tests.models.tiny import save_tiny_model
from tests.requirements import need

SIZE = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
"""vLLM's attention on a CPU wants heads of at least 32."""

GATES = {0: "relu", 2: "jumprelu", 3: "topk"}
"""Every gate in one bank, by layer."""


class FolderBench(Bench):
    """A tiny model that vLLM loads from its folder and the naive loop runs with transformers."""

    def __init__(self, folder: Path, architecture: str = "llama"):
        self.folder = save_tiny_model(folder, architecture, **SIZE)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self.model, self.layout = model.eval(), Layout.of(model)
        self.loaded = SimpleNamespace(model=self.model, layout=self.layout)
        self.saes = {layer: random_sae(layer, self.layout.d_model, gate) for layer, gate in GATES.items()}
        features = [(0, 5), (0, 17), (2, 3), (2, 40), (2, 77), (3, 9)]
        self.bank = Bank.build(self.saes.__getitem__, features).with_random_controls(seed=7)
        self.reference = Reference(self.model, self.layout, self.bank, self.saes)

    def open(self, **options) -> VllmEngine:
        options = {"batch_size": 16, "end_tokens": (), "max_model_len": 256, "enforce_eager": True} | options
        return VllmEngine(self.folder, self.bank, self.saes.__getitem__, **options)

    def naive(self, trial: Trial) -> tuple[tuple[int, ...], dict[int, torch.Tensor]]:
        """The naive loop's tokens, and the stream after each layer that its last pass read."""
        expected = self.reference.run(trial, frozenset())
        return expected.tokens, expected.stream

    def assert_naive(self, trials: Iterable[Trial], tokens: dict[int, tuple[int, ...]], end_tokens=()) -> None:
        """Every text is the naive loop's, up to what rounding may decide; which it may do once in a while."""
        accepted = 0
        for trial in trials:
            expected, at_boundary = self.reference.follow(trial, frozenset(end_tokens), tokens[trial.id])
            assert tokens[trial.id] == expected.tokens, trial
            accepted += at_boundary
        assert accepted <= 1 + len(tokens) // 50


def texts(results: dict) -> dict[int, tuple[int, ...]]:
    return {i: result.tokens for i, result in results.items()}


def run(engine: VllmEngine, trials, capture=None) -> dict:
    return {result.id: result for result in engine.generate(trials, capture)}


@pytest.fixture(scope="session")
def vllm() -> None:
    need("vllm", find_spec("vllm") is not None, "make test-vllm")


@pytest.fixture(scope="session")
def bench(vllm, tmp_path_factory) -> FolderBench:
    return FolderBench(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(bench) -> Iterator[VllmEngine]:
    """The module's engine: tiny Llama, eager."""
    with bench.open(batch_size=64) as engine:
        yield engine
