"""The torch engine against the naive loop, and its promises one by one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tasks.engines import torch_engine
from tasks.engines.interface import Capture, Cell, Edit, EditNotApplied, Trial
from tasks.engines.torch_engine import TorchEngine
from tasks.errors import BadInput
from tests.engines import naive
from tests.engines.conftest import Bench
from tests.models.tiny import ARCHITECTURES


def run(bench: Bench, trials, capture=None, **options):
    options.setdefault("batch_size", 7)
    engine = TorchEngine(bench.loaded, bench.bank, bench.saes.__getitem__, **options)
    results = {r.id: r for r in engine.generate(trials, capture)}
    assert sorted(results) == sorted(t.id for t in trials)
    return results


def tokens(results) -> dict[int, tuple[int, ...]]:
    return {i: r.tokens for i, r in results.items()}


def reference(bench: Bench, trials, end_tokens=()) -> dict[int, tuple[int, ...]]:
    return {t.id: naive.generate(bench.model, bench.layout, t, bench.bank, bench.saes, end_tokens)[0] for t in trials}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_naive_loop_in_every_architecture(architecture):
    bench = Bench(architecture)
    if not bench.model._supports_attention_backend:
        with pytest.raises(BadInput, match="attention interface"):
            TorchEngine(bench.loaded, bench.bank)
        return
    trials = bench.trials(14, seed=1)
    assert tokens(run(bench, trials, end_tokens=())) == reference(bench, trials)


@pytest.mark.parametrize("gate", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("mode", ["keep_error", "reconstruct"])
@pytest.mark.parametrize("scope", ["last", "decode", "all"])
def test_equals_the_naive_loop_in_every_scope_mode_and_gate(scope, mode, gate):
    bench = Bench(gate=gate)
    rows = range(len(bench.bank))
    prompts = bench.prompts(3)
    trials = [
        Trial(i, prompts[i % 3], seed=i, edit=Edit(row, 2.5 - i % 4, scope, mode), max_new_tokens=6)
        for i, row in enumerate(rows)
    ]
    results = run(bench, trials, end_tokens=())
    assert tokens(results) == reference(bench, trials)
    per_scope = {"last": lambda t: 1, "decode": lambda t: 6, "all": lambda t: len(t.prompt) - 1 + 6}
    assert [results[t.id].edits_applied for t in trials] == [per_scope[scope](t) for t in trials]


def test_results_do_not_depend_on_batch_size_order_or_neighbours(bench):
    trials = bench.trials(40, seed=2)
    expected = tokens(run(bench, trials, batch_size=1))
    assert len(set(expected.values())) > 20
    for size in (3, 16, 64):
        assert tokens(run(bench, trials, batch_size=size)) == expected
    shuffled = [trials[i] for i in np.random.default_rng(0).permutation(len(trials))]
    assert tokens(run(bench, shuffled, batch_size=16)) == expected
    alone = run(bench, trials[5:6])
    assert alone[5].tokens == expected[5]


def test_prefix_sharing_on_and_off_agree(bench):
    trials = bench.trials(30, seed=3)
    assert tokens(run(bench, trials)) == tokens(run(bench, trials, share_prefixes=False))
    assert tokens(run(bench, trials)) == tokens(run(bench, trials, prefix_bytes=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", ["last", "all"])
def test_setting_a_feature_to_its_own_value_is_bit_identical_to_no_edit(dtype, scope):
    bench = Bench(dtype=dtype)
    prompt = bench.prompts(1)[0][:1] if scope == "all" else bench.prompts(1, seed=5)[0]
    layers = list(range(bench.layout.n_layers))
    capture = Capture(residual_layers=layers, positions=("last",))
    for row in range(len(bench.bank)):
        plain = Trial(0, prompt, seed=1, max_new_tokens=1)
        probe = dataclasses.replace(plain, edit=Edit(row, 1.0, scope))
        f = run(bench, [probe])[0].f_before
        same = dataclasses.replace(plain, edit=Edit(row, f, scope))
        edited, untouched = run(bench, [same], capture)[0], run(bench, [plain], capture)[0]
        assert edited.edits_applied == 1
        assert edited.relative_delta == 0
        assert np.array_equal(edited.residuals, untouched.residuals)


def test_rows_of_a_batch_do_not_affect_each_other(bench):
    """A batch whose other rows are edited beyond reason leaves a plain row's stream as it is alone."""
    prompt = bench.prompts(1, seed=9)[0]
    plain = Trial(0, prompt, seed=1, max_new_tokens=4)
    wild = [Trial(i, prompt, seed=i, edit=Edit(i % 6, 1e4, "all"), max_new_tokens=4) for i in range(1, 12)]
    capture = Capture(residual_layers=[0, 1, 2, 3], positions=("decode",))
    alone = run(bench, [plain], capture, end_tokens=())[0]
    among = run(bench, [plain, *wild], capture, batch_size=12, end_tokens=())[0]
    assert among.tokens == alone.tokens
    np.testing.assert_allclose(among.residuals, alone.residuals, rtol=2e-5, atol=2e-5)


def test_captures_are_the_edited_stream_with_the_right_labels(bench):
    trials = bench.trials(20, seed=4)
    rows = [0, 3, 5, 2, 8]
    capture = Capture(rows=rows, residual_layers=[1, 3], positions=("decode",))
    results = run(bench, trials, capture, end_tokens=())
    for trial in trials:
        got = results[trial.id]
        generated, stream = naive.generate(bench.model, bench.layout, trial, bench.bank, bench.saes)
        text = [*trial.prompt, *generated]
        read = range(len(trial.prompt) - 1, len(text) - 1)
        assert [(r.trial, r.kind, r.position, r.token) for r in got.rows] == [
            (trial.id, "decode", p, text[p]) for p in read
        ]
        for n, position in enumerate(read):
            for k, layer in enumerate((1, 3)):
                expected = stream[layer][position].numpy()
                np.testing.assert_allclose(got.residuals[n, k], expected, rtol=1e-3, atol=1e-4)
            for k, row in enumerate(rows):
                layer, feature = int(bench.bank.layer[row]), int(bench.bank.feature[row])
                expected = float(bench.saes[layer].encode(stream[layer][position])[feature])
                assert got.features[n, k] == pytest.approx(expected, rel=4e-3, abs=2e-3)


def test_last_and_final_positions_are_rows_of_decode(bench):
    trials = bench.trials(15, seed=6)
    every = run(bench, trials, Capture(rows=range(6), positions=("decode",)))
    ends = run(bench, trials, Capture(rows=range(6), positions=("last", "final")))
    for i, result in ends.items():
        assert [r.kind for r in result.rows] == ["last", "final"]
        for n, row in enumerate(result.rows):
            at = [r.position for r in every[i].rows].index(row.position)
            assert row.token == every[i].rows[at].token
            np.testing.assert_allclose(result.features[n], every[i].features[at], rtol=2e-3, atol=1e-3)
        assert result.rows[0].position == len(trials[i].prompt) - 1
        assert result.rows[1].position == len(trials[i].prompt) + len(result.tokens) - 2


def test_end_tokens_end_a_trial_and_its_slot_is_refilled(bench):
    trials = bench.trials(30, seed=8, max_new_tokens=12, temperature=1.0, top_p=1.0)
    free = tokens(run(bench, trials, end_tokens=()))
    end = {free[t.id][len(free[t.id]) // 2] for t in trials[:6]}
    results = run(bench, trials, batch_size=4, end_tokens=end)
    assert tokens(results) == reference(bench, trials, end)
    assert {r.finish for r in results.values()} == {"eos", "length"}
    for result in results.values():
        assert (result.finish == "eos") == (result.tokens[-1] in end)


def test_an_edit_that_never_fires_fails(bench, monkeypatch):
    monkeypatch.setattr(torch_engine.BlockHooks, "_act", lambda self, now, layer, hidden: None)
    trial = Trial(3, (5, 6, 7), seed=0, edit=Edit(0, 1.0, "decode"), max_new_tokens=3)
    with pytest.raises(EditNotApplied, match=r"trial 3: .*row 0 was applied at 0 positions, its scope asks for 3"):
        run(bench, [trial], end_tokens=())


def test_an_exception_in_a_hook_ends_the_call_and_leaves_no_hook(bench):
    def broken(layer):
        raise KeyError("no dictionary")

    engine = TorchEngine(bench.loaded, bench.bank, broken)
    trial = Trial(0, (5, 6, 7), seed=0, edit=Edit(0, 1.0, mode="reconstruct"))
    with pytest.raises(KeyError, match="no dictionary"):
        list(engine.generate([trial]))
    assert not any(block._forward_hooks for block in bench.layout.blocks)
    assert bench.model.config._attn_implementation != "tomograph_tiled"


class _OutOfMemoryAbove:
    """Makes forward passes of more than `limit` rows fail as the CPU allocator does, at a chosen pass."""

    def __init__(self, model, limit: int, from_pass: int):
        self.limit, self.from_pass, self.passes = limit, from_pass, 0
        self.handle = model.register_forward_pre_hook(self._check, with_kwargs=True)

    def _check(self, module, args, kwargs):
        self.passes += 1
        if self.passes >= self.from_pass and kwargs["input_ids"].shape[0] > self.limit:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")


@pytest.mark.parametrize("from_pass", [1, 3, 5])
def test_batch_is_halved_when_memory_runs_out_and_no_trial_is_lost(bench, from_pass):
    trials = bench.trials(40, seed=11)
    expected = tokens(run(bench, trials))
    engine = TorchEngine(bench.loaded, bench.bank, bench.saes.__getitem__, batch_size=32)
    limiter = _OutOfMemoryAbove(bench.model, limit=8, from_pass=from_pass)
    try:
        results = list(engine.generate(trials))
    finally:
        limiter.handle.remove()
    assert engine.batch_size == 8
    assert len(results) == len(trials)
    assert {r.id: r.tokens for r in results} == expected


def test_running_out_of_memory_with_one_row_is_an_error(bench):
    limiter = _OutOfMemoryAbove(bench.model, limit=0, from_pass=1)
    try:
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            run(bench, bench.trials(3), batch_size=4)
    finally:
        limiter.handle.remove()


def test_first_token_probabilities_equal_the_naive_distribution(bench):
    prompts = bench.prompts(3, seed=12)
    edits = [None] + [Edit(row, value, scope) for row in range(6) for value, scope in ((0.0, "last"), (4.0, "all"))]
    cells = [Cell(i, prompts[i % 3], edit) for i, edit in enumerate(edits * 2)]
    groups = [[4, 5], [60], list(range(70, 90))]
    engine = TorchEngine(bench.loaded, bench.bank, bench.saes.__getitem__, batch_size=5)
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.9)):
        got = {r.id: r for r in engine.first_token(cells, groups, temperature, top_p)}
        assert sorted(got) == [c.id for c in cells]
        for cell in cells:
            length = len(cell.prompt)
            logits, _ = naive.forward(
                bench.model, bench.layout, list(cell.prompt), length, cell.edit, bench.bank, bench.saes
            )
            p = naive.probabilities(logits, temperature, top_p)
            expected = [p[group].sum() for group in groups]
            np.testing.assert_allclose(got[cell.id].probabilities, expected, rtol=1e-4, atol=1e-6)


def test_exact_first_token_probabilities_equal_sampled_frequencies(bench):
    """2,000 samples per cell lie within the binomial band (simultaneous over all cells and groups)."""
    from scipy.stats import binom

    prompts = bench.prompts(2, seed=13)
    cells = [Cell(0, prompts[0]), Cell(1, prompts[0], Edit(2, 6.0)), Cell(2, prompts[1], Edit(5, -4.0, "all"))]
    groups = [list(range(0, 40)), list(range(40, 60)), list(range(60, 128))]
    engine = TorchEngine(bench.loaded, bench.bank, bench.saes.__getitem__, batch_size=256)
    exact = {r.id: r.probabilities for r in engine.first_token(cells, groups, temperature=0.7)}
    n, comparisons = 2000, len(cells) * len(groups)
    for cell in cells:
        trials = [Trial(i, cell.prompt, 10_000 * cell.id + i, cell.edit, 1, temperature=0.7) for i in range(n)]
        first = np.array([r.tokens[0] for r in engine.generate(trials)])
        for group, p in zip(groups, exact[cell.id], strict=True):
            low, high = binom.interval(1 - 0.01 / comparisons, n, p)
            assert low <= np.isin(first, group).sum() <= high


def test_wrong_input_is_refused(bench):
    with pytest.raises(ValueError, match="prompt is empty"):
        Trial(0, (), seed=0)
    with pytest.raises(ValueError, match=r"Edit\.value"):
        Edit(0, None)
    with pytest.raises(ValueError, match="not finite"):
        Edit(0, float("nan"))
    with pytest.raises(ValueError, match="trial id 1 is given twice"):
        run(bench, [Trial(1, (3, 4), seed=0), Trial(1, (3, 4), seed=1)])
    big = Trial(0, (3, 4, 5), seed=0, edit=Edit(2, -1e9), max_new_tokens=1)
    with pytest.raises(OverflowError, match="beyond float16"):
        run(bench, [big], Capture(rows=range(6), positions=("last",)))
