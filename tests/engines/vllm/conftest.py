"""Tiny models in folders, as vLLM wants them, and one engine at a time over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.engines.bank import Bank
from tasks.engines.interface import Trial
from tasks.engines.sampling import uniforms
from tasks.engines.vllm.engine import VllmEngine
from tasks.models.layout import Layout
from tests.engines import naive
from tests.engines.conftest import Bench, random_sae
from tests.models.tiny import save_tiny_model
from tests.requirements import need

SIZE = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
"""vLLM's attention on a CPU wants heads of at least 32."""

NOISE = 1e-5
"""Two right engines may sum in another order: a uniform this close to a token's edge may fall on either side."""


class FolderBench(Bench):
    """A tiny model that vLLM loads from its folder and the naive loop runs with transformers."""

    def __init__(self, folder: Path, architecture: str = "llama", gate: str = "jumprelu"):
        self.folder = save_tiny_model(folder, architecture, **SIZE)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self.use(model.eval(), gate)

    def use(self, model, gate: str) -> None:
        self.model, self.layout = model, Layout.of(model)
        self.loaded = SimpleNamespace(model=self.model, layout=self.layout)
        self.saes = {layer: random_sae(layer, self.layout.d_model, gate) for layer in (0, 2, 3)}
        features = [(0, 5), (0, 17), (2, 3), (2, 40), (2, 77), (3, 9)]
        self.bank = Bank.build(self.saes.__getitem__, features).with_random_controls(seed=7)

    def open(self, **options) -> VllmEngine:
        options = {"batch_size": 16, "end_tokens": (), "max_model_len": 256, "enforce_eager": True} | options
        return VllmEngine(self.folder, self.bank, self.saes.__getitem__, **options)

    def naive(self, trial: Trial, end_tokens=()) -> tuple[tuple[int, ...], dict[int, torch.Tensor]]:
        return naive.generate(self.model, self.layout, trial, self.bank, self.saes, end_tokens)

    def same_text(self, trial: Trial, one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        """Two texts of a trial are equal, or part at a token whose random number lies on the edge between both."""
        if one == other:
            return True
        at = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        ids = [*trial.prompt, *one[:at]]
        logits, _ = naive.forward(self.model, self.layout, ids, len(trial.prompt), trial.edit, self.bank, self.saes)
        if trial.temperature == 0:
            top = logits.topk(2)
            return {one[at], other[at]} == set(top.indices.tolist()) and bool(top.values.diff().abs() < 1e-4)
        ends = np.cumsum(naive.probabilities(logits, trial.temperature, trial.top_p))
        uniform = uniforms(trial.seed, trial.max_new_tokens)[at]
        low, high = sorted((one[at], other[at]))
        return abs(ends[low] - uniform) < NOISE and abs(ends[high - 1] - uniform) < NOISE

    def assert_naive(self, trials: list[Trial], results: dict, end_tokens=()) -> None:
        """Every result is the naive loop's; all but a few of them to the last token."""
        assert sorted(results) == sorted(trial.id for trial in trials)
        equal = 0
        for trial in trials:
            expected = self.naive(trial, end_tokens)[0]
            assert self.same_text(trial, expected, results[trial.id].tokens), trial
            equal += expected == results[trial.id].tokens
        assert equal >= 0.95 * len(trials)


def run(engine: VllmEngine, trials, capture=None) -> dict:
    return {result.id: result for result in engine.generate(trials, capture)}


@pytest.fixture(scope="session")
def vllm() -> None:
    need("vllm", find_spec("vllm") is not None, "make test-vllm")


@pytest.fixture(scope="session")
def make_bench(vllm, tmp_path_factory) -> Callable[..., FolderBench]:
    """A tiny model by architecture and gate, made once."""
    made: dict[tuple[str, str], FolderBench] = {}

    def make(architecture: str = "llama", gate: str = "jumprelu") -> FolderBench:
        if (architecture, gate) not in made:
            folder = tmp_path_factory.mktemp(f"{architecture}-{gate}")
            made[architecture, gate] = FolderBench(folder, architecture, gate)
        return made[architecture, gate]

    return make


@pytest.fixture(scope="module")
def bench(make_bench) -> FolderBench:
    return make_bench()


@pytest.fixture(scope="module")
def engine(bench) -> Iterator[VllmEngine]:
    """The module's engine: tiny Llama, JumpReLU dictionaries, eager."""
    with bench.open(batch_size=64) as engine:
        yield engine
