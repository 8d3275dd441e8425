"""What the batch size and the number of threads may change on a CPU: nothing but last bits, and not even these where
it was measured."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tasks.engines.interface import Capture, Cell, Edit, Trial
from tasks.engines.torch_engine import TorchEngine
from tasks.models.layout import Layout
from tests.benchmarks.workload import random_bank

LAYERS, WIDTH, TRIALS = 2, 576, 24
TOLERANCE = 1e-5
"""Of float32 numbers, relative; README names it."""
SETTINGS = [(2, 128), (1, 5), (2, 1)]
"""(threads, rows at most), beside one thread and 128 rows."""


@pytest.fixture(scope="module")
def loaded() -> SimpleNamespace:
    """As wide as a small real model: narrower matrices are multiplied by other routines."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 1536, "head_dim": 64, "vocab_size": 512}
    heads = {"num_hidden_layers": LAYERS, "num_attention_heads": 9, "num_key_value_heads": 3}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()
    return SimpleNamespace(model=model, layout=Layout.of(model))


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def measured(loaded: SimpleNamespace, threads: int, rows: int) -> tuple[list[tuple[int, ...]], dict[str, np.ndarray]]:
    """Sampled tokens, and every number that the engine gives of these trials."""
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(3, 500, n).tolist()) for n in (31, 25)]
    scopes = ("all", "last", "decode")
    trials = [
        Trial(i, prompts[i % 2], i, Edit(i, 5.0 + i, scopes[i % 3]), int(rng.integers(1, 9)), 0.8)
        for i in range(TRIALS)
    ]
    torch.set_num_threads(threads)
    engine = TorchEngine(loaded, random_bank(TRIALS, LAYERS, WIDTH), batch_size=rows, end_tokens=())
    capture = Capture(rows=list(range(TRIALS)), positions=("last", "final"), residual_layers=(0, 1))
    sampled = sorted(engine.generate(trials, capture), key=lambda result: result.id)
    cells = [Cell(trial.id, trial.prompt, trial.edit) for trial in trials]
    screened = sorted(engine.first_token(cells, [[5], [6, 7]]), key=lambda result: result.id)
    numbers = {
        "residuals": np.concatenate([result.residuals.reshape(-1) for result in sampled]),
        "delta": np.array([result.relative_delta for result in sampled]),
        "probabilities": np.array([result.probabilities for result in screened]),
        "delta of the screen": np.array([result.relative_delta for result in screened]),
    }
    return [result.tokens for result in sampled], numbers


@pytest.fixture(scope="module")
def expected(loaded):
    return measured(loaded, 1, 128)


def test_the_same_settings_give_the_same_bytes(loaded, expected) -> None:
    again = measured(loaded, 1, 128)
    assert again[0] == expected[0]
    for name, values in expected[1].items():
        assert again[1][name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize(("threads", "rows"), SETTINGS)
def test_threads_and_batch_size_change_no_more_than_promised(loaded, expected, threads, rows) -> None:
    tokens, numbers = measured(loaded, threads, rows)
    assert tokens == expected[0]
    measured_here = torch.backends.cpu.get_cpu_capability() == "AVX2"
    for name, values in expected[1].items():
        np.testing.assert_allclose(numbers[name], values, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)
        if measured_here:
            np.testing.assert_array_equal(numbers[name], values, err_msg=name)
