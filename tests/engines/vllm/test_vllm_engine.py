"""The vLLM engine's promises one by one, on a tiny Llama."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tasks.engines.interface import Capture, Cell, Edit, EditNotApplied, Trial
from tasks.engines.torch_engine import TorchEngine
from tasks.engines.vllm import requests
from tasks.engines.vllm.results import checked
from tasks.errors import BadInput
from tests.engines import naive
from tests.engines.vllm.conftest import run, texts


def long_prompt(bench, seed: int = 0, length: int = 100) -> tuple[int, ...]:
    """Three full blocks of the key-value cache and a part."""
    return bench.prompts(1, seed=seed, low=length, high=length + 1)[0]


def test_64_distinct_edits_in_one_batch_equal_the_torch_engine_one_at_a_time(bench, engine):
    rng = np.random.default_rng(5)
    prompts = [long_prompt(bench, seed) for seed in range(3)]
    trials = [
        Trial(i, prompts[i % 3], i, Edit(int(rng.integers(12)), float(rng.normal() * 4), scope), 8, temperature)
        for i, (scope, temperature) in enumerate([("last", 0.0), ("decode", 0.7), ("all", 1.0), ("decode", 0.0)] * 16)
    ]
    assert len({(t.edit.row, t.edit.value) for t in trials}) == 64
    alone = TorchEngine(bench.loaded, bench.bank, bench.saes.__getitem__, batch_size=1, end_tokens=())
    expected = run(alone, trials)
    results = run(engine, trials)
    bench.assert_naive(trials, texts(results))
    for trial in trials:
        got, want = results[trial.id], expected[trial.id]
        assert got.edits_applied == want.edits_applied
        assert got.f_before == pytest.approx(want.f_before, rel=1e-4, abs=1e-4)
        assert got.relative_delta == pytest.approx(want.relative_delta, rel=1e-4)
    assert sum(results[t.id].tokens != expected[t.id].tokens for t in trials) <= 1


def plain_after_edited(bench, engine, seed: int) -> tuple[Trial, tuple[int, ...]]:
    """Edits of a whole prompt first; then a plain request for it, greedy."""
    plain = Trial(0, long_prompt(bench, seed), seed=0, max_new_tokens=12, temperature=0.0)
    run(engine, [dataclasses.replace(plain, edit=Edit(2, 60.0, "all"), max_new_tokens=2)])
    return plain, run(engine, [plain])[0].tokens


def test_a_plain_request_after_edited_ones_is_right_and_wrong_without_the_salt(bench, engine, monkeypatch):
    plain, got = plain_after_edited(bench, engine, seed=20)
    assert got == bench.naive(plain)[0]
    monkeypatch.setattr(requests, "cache_salt", lambda *arguments: None)
    plain, got = plain_after_edited(bench, engine, seed=21)
    assert got != bench.naive(plain)[0]


@pytest.mark.parametrize("scope", ["last", "decode"])
def test_an_edited_last_block_is_not_taken_for_a_plain_one(scope, bench, engine, monkeypatch):
    """The prompt ends with a block, so that its edited last token lies in a block that is cached whole."""

    def error_after_edited(seed: int) -> float:
        """How far a plain request's stream is from the naive one's, after an edited request for its prompt."""
        prompt = long_prompt(bench, seed, length=96)
        run(engine, [Trial(0, prompt, seed=0, edit=Edit(0, 60.0, scope), max_new_tokens=3)])
        longer = Trial(1, (*prompt, 5), seed=0, max_new_tokens=1, temperature=0.0)
        got = run(engine, [longer], Capture(residual_layers=[3], positions=("last",)))[1].residuals[0, 0]
        return float(np.abs(got - bench.naive(longer)[1][3][-1].numpy()).max())

    assert error_after_edited(seed=22) < 1e-3
    monkeypatch.setattr(requests, "cache_salt", lambda *arguments: None)
    assert error_after_edited(seed=23) > 0.03


def test_trials_share_what_no_edit_has_touched_and_all_of_it_under_the_same_edit(bench, engine, monkeypatch):
    cached = {}

    def spy(done):
        cached[done.trial.id] = done.cached
        return checked(done)

    monkeypatch.setattr("tasks.engines.vllm.engine.checked", spy)
    prompt = long_prompt(bench, seed=30)
    edits = [None, Edit(0, 1.0), Edit(1, 1.0, "decode"), Edit(2, 1.0, "all"), Edit(2, 1.0, "all"), Edit(2, 2.0, "all")]
    for i, edit in enumerate(edits):
        result = run(engine, [Trial(i, prompt, seed=i, edit=edit, max_new_tokens=4)])[i]
        assert result.edits_applied == [0, 1, 4, 103, 103, 103][i]
    assert cached == {0: 0, 1: 96, 2: 96, 3: 0, 4: 96, 5: 0}


def test_samples_do_not_depend_on_order_or_neighbours(bench, engine):
    trials = bench.trials(60, seed=2)
    expected = texts(run(engine, trials))
    assert len(set(expected.values())) > 30
    bench.assert_naive(trials, expected)
    shuffled = [trials[i] for i in np.random.default_rng(0).permutation(len(trials))]
    again = texts(run(engine, shuffled))
    bench.assert_naive(trials, again)
    assert sum(again[i] != expected[i] for i in expected) <= 1
    alone = {trial.id: run(engine, [trial])[trial.id].tokens for trial in trials[:10]}
    assert sum(alone[i] != expected[i] for i in alone) <= 1


def test_samples_of_a_cell_have_their_own_seeds(bench, engine):
    prompt = long_prompt(bench, seed=31)
    trials = [Trial(i, prompt, seed=100 + i, edit=Edit(1, 3.0, "decode"), max_new_tokens=8) for i in range(30)]
    results = run(engine, trials)
    assert len({result.tokens for result in results.values()}) > 25
    bench.assert_naive(trials, texts(results))


def test_last_and_final_positions_are_rows_of_decode(bench, engine):
    trials = bench.trials(15, seed=6)
    every = run(engine, trials, Capture(rows=range(6), residual_layers=[1], positions=("decode",)))
    for positions in (("last", "final"), ("last",), ("final",)):
        ends = run(engine, trials, Capture(rows=range(6), residual_layers=[1], positions=positions))
        for i, result in ends.items():
            assert tuple(row.kind for row in result.rows) == positions
            at = {"last": len(trials[i].prompt) - 1, "final": len(trials[i].prompt) + len(result.tokens) - 2}
            for n, row in enumerate(result.rows):
                assert row.position == at[row.kind]
                match = [r.position for r in every[i].rows].index(row.position)
                assert row.token == every[i].rows[match].token
                np.testing.assert_allclose(result.features[n], every[i].features[match], rtol=2e-3, atol=1e-3)
                np.testing.assert_allclose(result.residuals[n], every[i].residuals[match], rtol=1e-3, atol=1e-4)


def test_captured_labels_are_right_when_prompts_come_from_the_cache(bench, engine):
    prompt = long_prompt(bench, seed=32)
    trials = [Trial(i, prompt, seed=i, edit=Edit(4, 2.0, "all"), max_new_tokens=5) for i in range(8)]
    capture = Capture(rows=[4], residual_layers=[3], positions=("decode",))
    for results in (run(engine, trials, capture), run(engine, trials, capture)):
        for trial in trials:
            generated, stream = bench.naive(trial)
            assert [row.position for row in results[trial.id].rows] == list(range(99, 104))
            assert results[trial.id].tokens == generated
            np.testing.assert_allclose(results[trial.id].residuals[:, 0], stream[3][99:], rtol=1e-3, atol=2e-4)


def test_end_tokens_end_a_trial(bench, engine, monkeypatch):
    trials = bench.trials(30, seed=8, max_new_tokens=12, temperature=1.0, top_p=1.0)
    free = texts(run(engine, trials))
    end = sorted({free[trial.id][len(free[trial.id]) // 2] for trial in trials[:6]})
    monkeypatch.setattr(engine, "end_tokens", tuple(end))
    results = run(engine, trials)
    bench.assert_naive(trials, texts(results), end)
    assert {result.finish for result in results.values()} == {"eos", "length"}
    for result in results.values():
        assert (result.finish == "eos") == (result.tokens[-1] in end)


def test_first_token_probabilities_equal_the_naive_distribution(bench, engine):
    prompts = [long_prompt(bench, 40), *bench.prompts(2, seed=12)]
    edits = [None] + [Edit(row, value, scope) for row in range(6) for value, scope in ((0.0, "last"), (4.0, "all"))]
    cells = [Cell(i, prompts[i % 3], edit) for i, edit in enumerate(edits * 2)]
    groups = [[4, 5], [60], list(range(70, 90))]
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.9), (0.0, 1.0)):
        got = {result.id: result for result in engine.first_token(cells, groups, temperature, top_p)}
        assert sorted(got) == [cell.id for cell in cells]
        for cell in cells:
            ids, length = list(cell.prompt), len(cell.prompt)
            logits, _ = naive.forward(bench.model, bench.layout, ids, length, cell.edit, bench.bank, bench.saes)
            if temperature:
                expected = [naive.probabilities(logits, temperature, top_p)[group].sum() for group in groups]
            else:
                expected = [float(int(logits.argmax()) in group) for group in groups]
            np.testing.assert_allclose(got[cell.id].probabilities, expected, rtol=1e-4, atol=1e-6)
            assert (got[cell.id].f_before is None) == (cell.edit is None)


def test_an_edit_that_never_fires_fails(bench, engine, monkeypatch):
    from tasks.engines.vllm import state

    monkeypatch.setattr(state, "edit_", lambda *arguments: None)
    with pytest.raises(EditNotApplied, match="applied at 0 positions, its scope asks for 3"):
        run(engine, [Trial(0, (5, 6, 7), seed=0, edit=Edit(0, 1.0, "decode"), max_new_tokens=3)])
    monkeypatch.undo()
    trial = Trial(0, (5, 6, 7), seed=0, edit=Edit(0, 1.0, "decode"), max_new_tokens=3)
    assert run(engine, [trial])[0].tokens == bench.naive(trial)[0]


def test_an_abandoned_call_leaves_the_engine_usable(bench, engine):
    trials = bench.trials(80, seed=10)
    capture = Capture(rows=[0], positions=("decode",))
    results = engine.generate(trials, capture)
    next(results)
    with pytest.raises(RuntimeError, match="the engine is running"):
        next(engine.generate(trials))
    results.close()
    bench.assert_naive(trials[:20], texts(run(engine, trials[:20], capture)))


def test_wrong_input_is_refused(bench, engine, tmp_path):
    def refused(trial, capture=None):
        return list(engine.generate([trial], capture))

    with pytest.raises(ValueError, match="trial id 1 is given twice"):
        list(engine.generate([Trial(1, (3, 4), seed=0), Trial(1, (3, 4), seed=1)]))
    with pytest.raises(IndexError, match="bank row 12: the engine's bank has 12 rows"):
        refused(Trial(0, (3, 4), seed=0, edit=Edit(12, 1.0)))
    with pytest.raises(BadInput, match=r"engine.max_model_len = 256: trial 0 may take 302 tokens"):
        refused(Trial(0, (3, 4), seed=0, max_new_tokens=300))
    too_large = Trial(0, (3, 4, 5), seed=0, edit=Edit(2, -1e9), max_new_tokens=1)
    with pytest.raises(OverflowError, match="beyond float16"):
        refused(too_large, Capture(rows=range(6), positions=("last",)))
    with pytest.raises(RuntimeError, match="another vLLM engine is open"):
        bench.open()
    trial = Trial(0, (5, 6, 7), seed=0, max_new_tokens=3)
    assert run(engine, [trial])[0].tokens == bench.naive(trial)[0]


def test_what_cuda_graphs_cannot_hold_is_refused(bench, engine, monkeypatch):
    """The rule alone: on a CPU there are no graphs."""
    monkeypatch.setattr(engine, "_graphs", True)
    monkeypatch.setattr(engine, "_capture", Capture(rows=(0, 1)))
    monkeypatch.setattr(engine, "_dictionaries", set())
    trial = Trial(0, (5, 6, 7), seed=0, max_new_tokens=2)
    assert run(engine, [trial], Capture(rows=[0, 1]))[0].features.shape == (2, 2)
    with pytest.raises(BadInput, match="CUDA graphs hold the capture that the engine was opened with"):
        run(engine, [trial], Capture(rows=[1]))
    for edit in (Edit(0, 1.0, mode="reconstruct"), Edit(5, 1.0)):
        with pytest.raises(BadInput, match=r"engine.enforce_eager.*whole dictionaries"):
            run(engine, [dataclasses.replace(trial, edit=edit)])
