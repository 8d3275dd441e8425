"""Random mixes of trials, every architecture and every gate, against the naive loop."""

from __future__ import annotations

import pytest

from tasks.engines.interface import Capture, Edit, Trial, expected_edits
from tests.engines.cases import Agreement, check, random_case
from tests.engines.vllm.conftest import FolderBench, run, texts

ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"]
CALLS = (30, 25)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_mixes_equal_the_naive_loop(architecture, vllm, tmp_path):
    """Prompts of up to three blocks of the cache; windows of attention shorter than texts. 165 trials."""
    bench = FolderBench(tmp_path / "model", architecture)
    vocabulary = bench.model.config.vocab_size
    agreement = Agreement()
    with bench.open() as engine:

        def engine_of(case):
            engine.batch_size, engine.end_tokens = min(case.batch_size, 16), tuple(case.end_tokens)
            return engine

        for i in range(3):
            seed = 10 * ARCHITECTURES.index(architecture) + i
            case = random_case(seed, bench.bank, 4, vocabulary, CALLS, longest_prompt=(32, 100, 100)[i])
            agreement += check(engine_of, case, bench.reference)
    assert agreement.trials == 3 * sum(CALLS)
    assert agreement.captured > agreement.trials / 2
    assert agreement.accepted <= 2


def test_every_scope_and_mode_of_every_row_equals_the_naive_loop(bench, engine):
    """Twice: the second time, prompts come from the cache."""
    prompts = bench.prompts(3, low=30, high=70)
    shapes = [(scope, mode) for scope in ("last", "decode", "all") for mode in ("keep_error", "reconstruct")]
    trials = [
        Trial(i, prompts[i % 3], seed=i, edit=Edit(i % 12, 2.5 - i % 4, *shapes[i // 12]), max_new_tokens=6)
        for i in range(12 * len(shapes))
    ]
    trials.append(Trial(1000, prompts[0], seed=9, edit=Edit(2, None, "all", "reconstruct"), max_new_tokens=6))
    for _ in range(2):
        results = run(engine, trials, Capture(rows=(5, 2), positions=("last", "final")))
        bench.assert_naive(trials, texts(results))
        assert all(results[trial.id].edits_applied == expected_edits(trial, 6) for trial in trials)
