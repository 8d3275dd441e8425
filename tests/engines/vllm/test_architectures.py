"""Every architecture and every gate against the naive loop: mixed trials, counts and captured streams."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.engines.interface import Capture, Edit, Trial, expected_edits
from tests.engines.vllm.conftest import FolderBench, run

ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_trials_equal_the_naive_loop(architecture, make_bench):
    """Layers, scopes, modes, lengths and sampling settings at random; sliding windows are shorter than texts."""
    bench: FolderBench = make_bench(architecture)
    trials = bench.trials(24, seed=1)
    capture = Capture(rows=[0, 3, 5], residual_layers=[0, 1, 2, 3], positions=("decode",))
    with bench.open() as engine:
        results = run(engine, trials, capture)
    bench.assert_naive(trials, results)
    for trial in trials:
        got = results[trial.id]
        assert got.edits_applied == expected_edits(trial, len(got.tokens))
        generated, stream = bench.naive(trial)
        if generated != got.tokens:
            continue
        text = [*trial.prompt, *generated]
        read = range(len(trial.prompt) - 1, len(text) - 1)
        labels = [(row.trial, row.kind, row.position, row.token) for row in got.rows]
        assert labels == [(trial.id, "decode", p, text[p]) for p in read]
        expected = np.stack([stream[layer][list(read)].numpy() for layer in range(4)], axis=1)
        np.testing.assert_allclose(got.residuals, expected, rtol=1e-3, atol=2e-4)
        for k, row in enumerate((0, 3, 5)):
            layer, feature = int(bench.bank.layer[row]), int(bench.bank.feature[row])
            f = bench.saes[layer].encode(stream[layer][list(read)])[:, feature].numpy()
            np.testing.assert_allclose(got.features[:, k], f, rtol=4e-3, atol=2e-3)


@pytest.mark.parametrize("gate", ["relu", "jumprelu", "topk"])
def test_every_scope_and_mode_equals_the_naive_loop(gate, make_bench):
    bench: FolderBench = make_bench("llama", gate)
    prompts = bench.prompts(3, low=30, high=70)
    shapes = [(scope, mode) for scope in ("last", "decode", "all") for mode in ("keep_error", "reconstruct")]
    trials = [
        Trial(i, prompts[i % 3], seed=i, edit=Edit(i % 12, 2.5 - i % 4, *shapes[i // 12]), max_new_tokens=6)
        for i in range(12 * len(shapes))
    ]
    trials.append(Trial(1000, prompts[0], seed=9, edit=Edit(2, None, "all", "reconstruct"), max_new_tokens=6))
    with bench.open() as engine:
        results = run(engine, trials)
        again = run(engine, trials)
    bench.assert_naive(trials, results)
    bench.assert_naive(trials, again)
    for trial in trials:
        assert results[trial.id].edits_applied == again[trial.id].edits_applied == expected_edits(trial, 6)
