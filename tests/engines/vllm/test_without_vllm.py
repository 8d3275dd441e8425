"""What can be tested without vLLM: salts, plans of passes, counts over positions read twice, missing vLLM."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from tasks.engines.interface import Capture, Edit, Trial
from tasks.engines.vllm.dictionaries import load_dictionary, save_dictionary
from tasks.engines.vllm.engine import VllmEngine
from tasks.engines.vllm.requests import Instructions, cache_salt, salted_position
from tasks.engines.vllm.state import Call, WorkerState
from tasks.errors import BadInput
from tests.engines.conftest import Bench, random_sae
from tests.models.tiny import save_tiny_model


def test_salts_tell_apart_what_edits_differently():
    edits = [Edit(0, 1.0, scope, mode) for scope in ("last", "decode", "all") for mode in ("keep_error", "reconstruct")]
    edits += [Edit(1, 1.0), Edit(0, 2.0), Edit(0, None, mode="reconstruct")]
    salts = [cache_salt(edit, 10, "bank") for edit in edits]
    assert len(set(salts)) == len(edits)
    assert [salted_position(salt) for salt in salts[:6]] == [9, 9, 9, 9, 0, 0]
    assert cache_salt(None, 10, "bank") is None
    assert cache_salt(edits[0], 10, "bank") != cache_salt(edits[0], 11, "bank")
    assert cache_salt(edits[0], 10, "bank") != cache_salt(edits[0], 10, "other")
    assert cache_salt(edits[4], 10, "bank") == cache_salt(edits[4], 11, "bank")
    assert salted_position("somebody else's") is None


def state_of(bench: Bench) -> WorkerState:
    return WorkerState(bench.bank, bench.layout.d_model, 4, 64, torch.device("cpu"), False, Capture())


def one_pass(state: WorkerState, trial: Trial, layer: int, computed: int, scheduled: int, slot: int = 0) -> None:
    request = asdict(Instructions.of(trial, slot, serial=trial.id))
    state.prepare([request], np.array([computed]), np.array([scheduled]))
    hidden = torch.randn(scheduled, 64, generator=torch.Generator().manual_seed(computed))
    state.apply(hidden, torch.ones(scheduled, 64), layer)
    state.finish(torch.arange(computed, computed + scheduled))


def test_a_position_read_twice_is_edited_twice_and_counted_and_recorded_once():
    bench = Bench()
    state = state_of(bench)
    state.begin(Call(residual_layers=(2,), positions=("decode",)))
    trial = Trial(7, tuple(range(10)), seed=0, edit=Edit(2, 5.0, "all"), max_new_tokens=9)
    one_pass(state, trial, 2, 0, 10)
    one_pass(state, trial, 2, 10, 1)
    one_pass(state, trial, 2, 11, 1)
    one_pass(state, trial, 2, 0, 12)  # preempted: all is read again, in one pass
    one_pass(state, trial, 2, 12, 1)
    outcome = state.collect([0])
    assert (outcome.applied[0], outcome.read[0]) == (13, 13)
    assert sorted(outcome.rows.position) == [9, 10, 11, 12]
    assert outcome.rows.token.tolist() == outcome.rows.position.tolist()


def test_a_pass_plans_every_token_of_every_request():
    bench = Bench()
    state = state_of(bench)
    trials = [
        Trial(1, tuple(range(8)), seed=1, edit=Edit(0, 1.0, "last"), max_new_tokens=5),
        Trial(2, tuple(range(6)), seed=2, edit=Edit(2, 2.0, "decode"), max_new_tokens=5),
        Trial(3, tuple(range(20)), seed=3, edit=Edit(3, 3.0, "all"), max_new_tokens=5),
        Trial(4, tuple(range(4)), seed=4, max_new_tokens=5),
    ]
    requests = [asdict(Instructions.of(trial, slot, trial.id)) for slot, trial in enumerate(trials)]
    state.prepare(requests, np.array([4, 6, 3, 3]), np.array([4, 1, 5, 1]))
    step = state._step
    assert step.position.tolist() == [4, 5, 6, 7, 6, 3, 4, 5, 6, 7, 3]
    assert step.row.tolist() == [-1, -1, -1, 0, 2, 3, 3, 3, 3, 3, -1]
    assert step.generated.tolist() == [0, 1, -12, 0]
    assert step.ends.tolist() == [3, 4, 9, 10]
    of = [np.random.Generator(np.random.Philox(key=seed)).random(2) for seed in (1, 2, 4)]
    assert step.uniform[[0, 1, 3]].tolist() == [of[0][0], of[1][1], of[2][0]]


def test_passes_of_fixed_shape_do_what_passes_of_the_needed_shape_do():
    """As under CUDA graphs: every layer's kernels run on padded tokens, whatever the pass holds."""
    bench = Bench()
    capture = Capture(rows=(0, 3, 5), residual_layers=(1, 2), positions=("decode",))
    call = Call(capture.rows, capture.residual_layers, capture.positions)
    trials = [
        Trial(1, tuple(range(8)), seed=1, edit=Edit(0, 4.0, "last"), max_new_tokens=5),
        Trial(2, tuple(range(6)), seed=2, edit=Edit(2, 5.0, "all"), max_new_tokens=5),
        Trial(3, tuple(range(5)), seed=3, max_new_tokens=5),
    ]
    requests = [asdict(Instructions.of(trial, slot, trial.id)) for slot, trial in enumerate(trials)]
    found = []
    for static in (False, True):
        state = WorkerState(bench.bank, 64, 4, 64, torch.device("cpu"), static, capture)
        state.begin(call)
        g, streams = torch.Generator().manual_seed(0), []
        for computed, scheduled in (([0, 0, 0], [8, 6, 5]), ([8, 6, 5], [1, 1, 1])):
            n = sum(scheduled)
            state.prepare(requests, np.array(computed), np.array(scheduled))
            for layer in range(4):
                hidden, residual = torch.randn(2, 32, 64, generator=g)
                before = hidden.clone()
                shown = slice(None) if static else slice(n)
                state.apply(hidden[shown], residual[shown], layer)
                assert torch.equal(hidden[n:], before[n:])
                streams.append(hidden[:n] + residual[:n])
            state.finish(torch.arange(32))
            state.apply(hidden, residual, 0)  # a pass of vLLM's own
            assert torch.equal(hidden[:n] + residual[:n], streams[-1])
        found.append((torch.cat(streams), state.collect([0, 1, 2])))
    (needed, outcome), (fixed, same) = found
    assert torch.equal(needed, fixed)
    assert outcome.applied.tolist() == same.applied.tolist() == [1, 7, 0]
    np.testing.assert_array_equal(outcome.f, same.f)
    order, other = (np.lexsort((rows.position, rows.slot)) for rows in (outcome.rows, same.rows))
    assert outcome.rows.position[order].tolist() == [7, 8, 5, 6, 4, 5]
    np.testing.assert_allclose(outcome.rows.features[order], same.rows.features[other], rtol=1e-3)
    np.testing.assert_array_equal(outcome.rows.residuals[order], same.rows.residuals[other])


@pytest.mark.parametrize("gate", ["relu", "jumprelu", "topk"])
def test_a_dictionary_comes_back_from_its_file(gate, tmp_path):
    sae = random_sae(3, 64, gate)
    save_dictionary(sae, tmp_path / "sae.safetensors")
    back = load_dictionary(tmp_path / "sae.safetensors")
    x = torch.randn(5, 64)
    assert back.layer == 3
    assert torch.equal(back.encode(x), sae.encode(x))
    assert torch.equal(back.reconstruct(x), sae.reconstruct(x))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_way_out_is_named(tmp_path):
    with pytest.raises(BadInput, match="vLLM is not installed in this environment; install it, or use the torch"):
        VllmEngine(save_tiny_model(tmp_path / "model"))
