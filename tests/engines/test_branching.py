"""Trials of a cell that agree so far are computed once, and each gets what it would get in a row of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from tasks.engines.interface import Capture, Edit, Trial
from tasks.engines.torch_engine import TorchEngine
from tests.engines.conftest import Bench

CAPTURE = Capture(rows=range(6), residual_layers=[1, 3], positions=("decode",))
OF_A_CELL = 12


def cells(bench: Bench, temperature: float = 0.4, top_p: float = 1.0) -> list[Trial]:
    """Seven cells of as many trials each, on two prompts. A low temperature makes trials agree for a while."""
    prompts = bench.prompts(2, seed=31)
    edits = [None, Edit(0, 3.0), Edit(3, -4.0, "decode"), Edit(1, 2.0, "all"), Edit(4, None, "last", "reconstruct")]
    kinds = [(prompts[0], edit) for edit in edits] + [(prompts[1], edit) for edit in edits[:2]]
    return [
        Trial(OF_A_CELL * number + i, prompt, 1000 * number + i, edit, 8, temperature, top_p)
        for number, (prompt, edit) in enumerate(kinds)
        for i in range(OF_A_CELL)
    ]


def outcome(bench: Bench, trials: list[Trial], *, branching: bool, **options):
    options = {"end_tokens": (), "batch_size": 32} | options
    engine = TorchEngine(bench.loaded, bench.bank, bench.saes.__getitem__, branching=branching, **options)
    results = {result.id: result for result in engine.generate(trials, CAPTURE)}
    assert sorted(results) == [trial.id for trial in trials]
    return results


@contextmanager
def counted_rows(bench: Bench) -> Iterator[list[int]]:
    """Rows of each forward pass of one token."""
    rows: list[int] = []

    def look(module, args, kwargs) -> None:
        if kwargs["input_ids"].shape[1] == 1:
            rows.append(kwargs["input_ids"].shape[0])

    handle = bench.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize("batch_size", [5, 32, 200])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_every_trial_gets_what_it_gets_in_a_row_of_its_own(bench, batch_size, top_p):
    trials = cells(bench, top_p=top_p)
    apart = outcome(bench, trials, branching=False)
    ends = {apart[i].tokens[3] for i in (0, 20, 40)}
    apart = outcome(bench, trials, branching=False, end_tokens=ends)
    together = outcome(bench, trials, branching=True, end_tokens=ends, batch_size=batch_size)
    assert {result.finish for result in apart.values()} == {"eos", "length"}
    for id, expected in apart.items():
        found = together[id]
        assert (found.tokens, found.finish, found.edits_applied, found.rows) == (
            expected.tokens,
            expected.finish,
            expected.edits_applied,
            expected.rows,
        )
        np.testing.assert_allclose(found.residuals, expected.residuals, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.features, expected.features, rtol=2e-3, atol=2e-3)
        assert (found.f_before is None) == (expected.f_before is None)
        np.testing.assert_allclose(found.f_before or 0, expected.f_before or 0, rtol=1e-4, atol=1e-5)


def test_passes_are_as_wide_as_trials_differ(bench):
    trials = cells(bench, temperature=0.15)
    with counted_rows(bench) as rows:
        results = outcome(bench, trials, branching=True, batch_size=len(trials))
    beginnings = {(id // OF_A_CELL, result.tokens[:n]) for id, result in results.items() for n in range(8)}
    assert len(rows) == 8
    assert rows[0] == 3 * 8  # a tile for each prefix: two prompts, one of them also under an edit of scope `all`
    assert len(beginnings) <= sum(rows) < 0.75 * 8 * len(trials)


def test_greedy_trials_of_a_cell_never_part(bench):
    trials = [Trial(i, bench.prompts(1)[0], i, Edit(0, 2.0), 6, temperature=0.0) for i in range(30)]
    with counted_rows(bench) as rows:
        results = outcome(bench, trials, branching=True)
    assert len({result.tokens for result in results.values()}) == 1
    assert rows == [8] * 6  # the least that a CPU multiplies without another rounding


def test_no_more_rows_than_trials_in_flight(bench):
    trials = cells(bench, temperature=1.5)
    with counted_rows(bench) as rows:
        outcome(bench, trials, branching=True, batch_size=16)
    assert max(rows) <= 16 + 8
