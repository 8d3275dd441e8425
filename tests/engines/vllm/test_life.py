"""How an engine begins and ends, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tasks.engines.interface import Capture, Cell, Edit, Trial
from tasks.engines.torch_engine import TorchEngine
from tasks.engines.vllm.engine import VllmEngine
from tasks.errors import BadInput
from tasks.models.layout import Layout
from tests.engines.vllm.conftest import run, texts
from tests.models.tiny import save_tiny_model


def test_compiled_and_eager_agree(bench):
    trials = bench.trials(40, seed=3)
    capture = Capture(rows=[0, 3, 5], residual_layers=[0, 3], positions=("decode",))
    with bench.open(enforce_eager=True) as engine:
        eager = run(engine, trials, capture)
    with bench.open(enforce_eager=False) as engine:
        compiled = run(engine, trials, capture)
    bench.assert_naive(trials, texts(eager))
    bench.assert_naive(trials, texts(compiled))
    for trial in trials:
        one, other = eager[trial.id], compiled[trial.id]
        assert one.edits_applied == other.edits_applied
        if one.tokens == other.tokens:
            np.testing.assert_allclose(one.residuals, other.residuals, rtol=1e-3, atol=2e-4)


def test_a_cache_too_small_for_all_holds_back_and_a_prompt_in_chunks_is_read_whole(bench):
    """Room for two requests of eighty; passes of at most 40 tokens."""
    rng = np.random.default_rng(3)
    prompts = [tuple(rng.integers(3, 120, 90).tolist()) for _ in range(4)]
    trials = [Trial(i, prompts[i % 4], i, Edit(i % 6, 3.0, "all"), max_new_tokens=30) for i in range(12)]
    block = 2 * 4 * 2 * 32 * 4 * 32
    with bench.open(cache_bytes=9 * block, max_batched_tokens=40) as engine:
        assert engine._driver._room.blocks == 8
        capture = Capture(residual_layers=[3], positions=("last",))
        results = run(engine, trials, capture)
    bench.assert_naive(trials, texts(results))
    for trial in trials:
        stream = bench.naive(trial)[1][3]
        np.testing.assert_allclose(results[trial.id].residuals[0, 0], stream[89], rtol=1e-3, atol=2e-4)


def test_an_exception_in_the_operation_ends_the_call_and_the_engine(bench, monkeypatch):
    from tasks.engines.vllm import state

    def broken(*arguments):
        raise KeyError("broken on purpose")

    trial = Trial(0, (5, 6, 7), seed=0, edit=Edit(0, 1.0))
    with bench.open() as engine:
        monkeypatch.setattr(state, "edit_", broken)
        with pytest.raises(KeyError, match="broken on purpose"):
            run(engine, [trial])
        monkeypatch.undo()
        with pytest.raises(RuntimeError, match="the engine is broken"):
            run(engine, [trial])
    with pytest.raises(RuntimeError, match="the engine is closed"):
        run(engine, [trial])
    with bench.open() as engine:
        assert run(engine, [trial])[0].edits_applied == 1


def test_bfloat16_equals_the_torch_engine_up_to_its_rounding(bench, tmp_path):
    """Exact float32 logits on both sides: probabilities agree as far as bfloat16 layers do."""
    model = copy.deepcopy(bench.model).to(torch.bfloat16)
    loaded = SimpleNamespace(model=model, layout=Layout.of(model))
    prompts = bench.prompts(4, seed=2, low=10)
    cells = [Cell(i, prompts[i % 4], Edit(i % 12, 3.0, "all") if i % 3 else None) for i in range(24)]
    groups = [list(range(0, 60)), list(range(60, 200)), list(range(200, 262))]
    engine = TorchEngine(loaded, bench.bank, bench.saes.__getitem__)
    expected = {r.id: r for r in engine.first_token(cells, groups)}
    with bench.open(dtype="bfloat16") as engine:
        got = {r.id: r for r in engine.first_token(cells, groups)}
    for i, cell in enumerate(cells):
        np.testing.assert_allclose(got[i].probabilities, expected[i].probabilities, atol=0.06)
        if cell.edit is not None:
            assert got[i].f_before == pytest.approx(expected[i].f_before, abs=0.2)


@pytest.mark.slow
def test_two_workers_that_share_the_model_equal_the_naive_loop(bench):
    trials = bench.trials(30, seed=3)
    capture = Capture(rows=[0, 5], residual_layers=[1], positions=("decode",))
    with bench.open(tensor_parallel=2) as engine:
        bench.assert_naive(trials, texts(run(engine, trials, capture)))


def test_models_and_edits_it_cannot_run_are_refused(vllm, bench, tmp_path):
    folder = save_tiny_model(tmp_path / "neox", "gpt_neox")
    with pytest.raises(BadInput, match=r"GPTNeoXForCausalLM.*use the torch engine"):
        VllmEngine(folder)
    for options in ({"max_model_len": 100_000}, {"cache_bytes": 1000}):
        with pytest.raises(BadInput, match="vLLM refuses"):
            bench.open(**options)
    with (
        VllmEngine(bench.folder, bench.bank, None, max_model_len=64, enforce_eager=True) as engine,
        pytest.raises(ValueError, match="need the layer's SAE, none given"),
    ):
        run(engine, [Trial(0, (5, 6), seed=0)], Capture(rows=[5]))


def test_without_a_bank_it_generates(bench):
    trial = Trial(0, (5, 6, 7), seed=3, max_new_tokens=6)
    with VllmEngine(bench.folder, end_tokens=(), max_model_len=64, enforce_eager=True) as engine:
        assert run(engine, [trial])[0].tokens == bench.naive(trial)[0]
        with pytest.raises(IndexError, match="has 0 rows"):
            run(engine, [Trial(0, (5, 6), seed=0, edit=Edit(0, 1.0))])


def test_the_second_runners_seams_are_as_the_adapter_expects(vllm):
    """The V2 runner needs a GPU; that its classes take what the adapter gives and give what it takes can be seen."""
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    from tasks.engines.vllm import internals

    state, draw = internals.model_state_v2(), internals.DrawV2
    for name in ("add_request", "prepare_inputs", "postprocess_state"):
        ours, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (state, DefaultModelState))
        assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]
    assert not state.__abstractmethods__
    assert not draw.__abstractmethods__
    assert inspect.signature(draw.apply).parameters.keys() == inspect.signature(draw.__mro__[1].apply).parameters.keys()
    fields = {"num_reqs", "idx_mapping_np", "num_computed_tokens_np", "num_scheduled_tokens", "input_ids"}
    assert fields <= {field.name for field in dataclasses.fields(InputBatch)}
    assert "sampling_params" in {field.name for field in dataclasses.fields(NewRequestData)}
