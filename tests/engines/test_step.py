"""What lets a step be recorded and replayed on a GPU: it needs nothing from the host, and the host may learn late."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.engines import hooks
from tasks.engines.interface import Capture
from tasks.engines.outbox import Outbox
from tasks.engines.recorder import Recorder
from tasks.engines.tiles import TrialQueue, dimensions
from tasks.engines.torch_engine import TorchEngine
from tests.engines.conftest import Bench

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "item")
CAPTURE = Capture(rows=range(6), residual_layers=[1], positions=("decode",))


def engine_of(bench: Bench, **options) -> TorchEngine:
    """As on a GPU: each trial has a row of its own."""
    defaults = {"end_tokens": (), "branching": False}
    return TorchEngine(bench.loaded, bench.bank, bench.saes.__getitem__, **defaults | options)


def outcome(engine: TorchEngine, trials, capture=CAPTURE):
    return {
        r.id: (r.tokens, r.finish, r.edits_applied, [(row.position, row.token) for row in r.rows])
        for r in engine.generate(trials, capture)
    }


@pytest.mark.parametrize("lag", [1, 2, 5])
@pytest.mark.parametrize("positions", [("decode",), ("last", "final")])
def test_results_do_not_depend_on_when_the_host_learns_of_an_end(bench, lag, positions):
    capture = Capture(rows=range(6), positions=positions)
    trials = bench.trials(40, seed=20)
    free = [r.tokens for r in engine_of(bench).generate(trials)]
    ends = {tokens[len(tokens) // 2] for tokens in free[:6]}
    at_once = {r.id: r for r in engine_of(bench, batch_size=6, end_tokens=ends).generate(trials, capture)}
    late = {r.id: r for r in engine_of(bench, batch_size=6, end_tokens=ends, lag=lag).generate(trials, capture)}
    assert sum(r.finish == "eos" for r in at_once.values()) > 3
    assert sorted(late) == sorted(at_once)
    for i, result in late.items():
        assert (result.tokens, result.edits_applied, result.rows) == (
            at_once[i].tokens,
            at_once[i].edits_applied,
            at_once[i].rows,
        )
        np.testing.assert_allclose(result.features, at_once[i].features, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral", "gpt_oss"])
def test_the_widest_plan_gives_what_the_narrow_ones_give(architecture, monkeypatch):
    """A recording is made for every pass that may come: all layers, all places, every kind of row."""
    bench = Bench(architecture)
    trials = bench.trials(30, seed=21)
    narrow = outcome(engine_of(bench, batch_size=8), trials)
    engine = engine_of(bench, batch_size=8)

    def widest(batch, queue):
        plan = batch.widest_plan(queue.unfinished.values(), engine._layer_of, engine._full_encode)
        return lambda now: engine._step(batch, replace(plan, captures=now.captures))

    monkeypatch.setattr(engine, "_step_of", widest)
    assert outcome(engine, trials) == narrow


class _Operations(TorchDispatchMode):
    """Notes every operation with the shapes of its results."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        shapes = tuple(tuple(t.shape) for t in (out if isinstance(out, (tuple, list)) else [out]) if torch.is_tensor(t))
        self.calls.append((func.overloadpacket.__name__, shapes))
        return out


def test_a_step_asks_the_host_for_nothing_and_repeats_itself(bench, monkeypatch):
    """Its operations and their shapes are the same at every pass, and none of them waits for the device.

    The edit is left out: without a GPU it picks its tokens, where the kernel does not.
    """
    monkeypatch.setattr(hooks, "edit_", lambda hidden, residual, layer, edits, bank, found, dictionary: None)
    engine = engine_of(bench, batch_size=8)
    trials = bench.trials(24, seed=22, max_new_tokens=6)
    trials = [replace(t, edit=t.edit and replace(t.edit, scope="last", mode="keep_error", value=1.0)) for t in trials]
    queue = TrialQueue(trials)
    with torch.inference_mode():
        batch = engine._batch(queue, recorder_of(engine))
        batch.refill(queue, engine._prefixes.get)
        plan = batch.widest_plan(trials, engine._layer_of, engine._full_encode)
        engine._step(batch, plan)  # makes the buffers
        recordings = []
        for _ in range(3):
            with _Operations() as operations:
                engine._step(batch, plan)
            recordings.append(operations.calls)
    assert len(recordings[0]) > 200
    assert recordings[0] == recordings[1] == recordings[2]
    assert not [name for name, _ in recordings[0] if name in WAITS]


def recorder_of(engine: TorchEngine) -> Recorder:
    return Recorder(CAPTURE, engine.bank, None, engine.layout.d_model, engine.device)


def test_messages_keep_their_order_and_are_snapshots():
    outbox, tensor = Outbox(torch.device("cpu"), lag=2), torch.zeros(3)
    got = []
    for i in range(5):
        tensor.fill_(i)
        outbox.send(i, {"x": tensor})
        got += [(label, arrays["x"].tolist()) for label, arrays in outbox.arrived()]
    assert got == [(i, [float(i)] * 3) for i in range(3)]
    assert [label for label, _ in outbox.arrived(wait=True)] == [3, 4]


@pytest.mark.parametrize(
    ("counts", "most", "expected"),
    [
        ([1000], 128, (4, 32)),
        ([1000], 7, (1, 7)),
        ([5], 128, (1, 5)),
        ([500, 500], 128, (4, 32)),
        ([500, 500], 8, (2, 4)),
        ([30] * 100, 512, (17, 30)),
        ([20] * 100, 512, (25, 20)),
        ([1] * 50, 16, (16, 1)),
        ([1], 1, (1, 1)),
        ([1000] * 8, 1, (1, 1)),
    ],
)
def test_tiles_are_as_wide_as_they_can_be_without_standing_empty(counts, most, expected):
    assert dimensions(counts, most) == expected


def test_rows_are_refilled_with_trials_of_their_prefix_and_none_is_lost(bench):
    """Many prefixes, few rows: tiles change their prefix, and every trial is run once."""
    prompts = bench.prompts(11, seed=23)
    trials = [replace(t, prompt=prompts[i % 11]) for i, t in enumerate(bench.trials(70, seed=24))]
    engine = engine_of(bench, batch_size=6)
    results = [r.id for r in engine.generate(trials)]
    assert sorted(results) == list(range(70))
