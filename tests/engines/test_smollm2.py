"""The torch engine against the naive loop on a real model: SmolLM2-135M in float32, every scope and mode."""

from __future__ import annotations

from itertools import product

import pytest

from tasks.engines.bank import Bank
from tasks.engines.interface import Capture, Edit, Trial
from tasks.engines.torch_engine import TorchEngine
from tasks.models.load import load
from tasks.models.spec import ModelRef
from tests.engines.cases import Call, Case, check
from tests.engines.conftest import random_sae
from tests.engines.reference import Reference

LAYERS = {4: "relu", 14: "jumprelu", 25: "topk"}
TEXTS = ("You have 140 dollars. You may bet 10 dollars or stop. You choose to", "Paris is the capital of")
END_OF_TURN = 2


@pytest.fixture(scope="module")
def loaded():
    return load(ModelRef())


@pytest.fixture(scope="module")
def saes(loaded):
    return {layer: random_sae(layer, loaded.layout.d_model, gate) for layer, gate in LAYERS.items()}


@pytest.mark.slow
def test_equals_the_naive_loop_in_every_scope_and_mode(loaded, saes):
    bank = Bank.build(saes.__getitem__, [(layer, feature) for layer in LAYERS for feature in (7, 31)])
    bank = bank.with_random_controls(seed=3)
    prompts = [tuple(loaded.tokenizer(text).input_ids) for text in TEXTS]
    mixes = product(("last", "decode", "all"), ("keep_error", "reconstruct"), (0.0, 0.8))
    trials = [
        Trial(
            id=i,
            prompt=prompts[i % 2 if temperature else 0],
            seed=2**63 + i,
            edit=Edit((5 * i) % len(bank), 40.0 - 9 * i, scope, mode),
            max_new_tokens=4,
            temperature=temperature,
            top_p=0.95,
        )
        for i, (scope, mode, temperature) in enumerate(mixes)
    ]
    trials.append(Trial(id=99, prompt=prompts[1], seed=1, max_new_tokens=3))
    capture = Capture(rows=range(len(bank)), residual_layers=(0, 14, 29), positions=("decode",))
    case = Case(seed=0, batch_size=5, end_tokens=frozenset({END_OF_TURN}), calls=(Call(tuple(trials), capture),))
    agreement = check(
        lambda case: TorchEngine(
            loaded, bank, saes.__getitem__, batch_size=case.batch_size, end_tokens=case.end_tokens
        ),
        case,
        Reference(loaded.model, loaded.layout, bank, saes),
    )
    assert agreement.trials == 13
    assert agreement.accepted == 0
