"""The torch engine against the naive loop on 1,000 random trials (nightly; a third of them in every run), and the check
against engines that lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from tasks.engines.interface import CapturedRow, Trial, TrialResult
from tasks.engines.torch_engine import TorchEngine
from tests.engines.cases import Agreement, Case, check, random_case
from tests.engines.conftest import Bench
from tests.engines.reference import Reference, may_follow
from tests.models.tiny import VOCAB_SIZE

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral")
GATES = ("relu", "jumprelu", "topk")
CALLS = ((12, 7), (19, 18))
"""Trials of each call of each case: 56 per family and gate, 1,008 in all."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices this small are slower on several threads, much slower where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reference_of(bench: Bench) -> Reference:
    return Reference(bench.model, bench.layout, bench.bank, bench.saes)


def cases_of(bench: Bench, seed: int) -> list[Case]:
    return [
        random_case(10 * seed + i, bench.bank, bench.layout.n_layers, VOCAB_SIZE, calls)
        for i, calls in enumerate(CALLS)
    ]


def torch_engine(bench: Bench) -> Callable[[Case], TorchEngine]:
    return lambda case: TorchEngine(
        bench.loaded,
        bench.bank,
        bench.saes.__getitem__,
        batch_size=case.batch_size,
        end_tokens=case.end_tokens,
        branching=case.seed % 2 == 0,
    )


def mixes() -> Iterator[Any]:
    """Every family with every gate; one gate of each family in every run, the others nightly."""
    for i, (family, gate) in enumerate(product(FAMILIES, GATES)):
        in_every_run = i % len(GATES) == FAMILIES.index(family) % len(GATES)
        yield pytest.param(family, gate, marks=() if in_every_run else pytest.mark.nightly)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "gate"), mixes())
def test_equals_the_naive_loop_on_random_mixes(family, gate):
    bench = Bench(family, gate)
    reference, agreement = reference_of(bench), Agreement()
    for case in cases_of(bench, seed=FAMILIES.index(family) * len(GATES) + GATES.index(gate)):
        agreement += check(torch_engine(bench), case, reference)
    assert agreement.trials == sum(map(sum, CALLS))
    assert agreement.tokens > 2 * agreement.trials
    assert agreement.accepted <= 1


def test_the_mixes_hold_what_they_should():
    bench = Bench()
    cases = [case for seed in range(len(FAMILIES) * len(GATES)) for case in cases_of(bench, seed)]
    trials = [trial for case in cases for call in case.calls for trial in call.trials]
    captures = [call.capture for case in cases for call in case.calls]
    assert len(trials) >= 1000
    assert {(t.edit.scope, t.edit.mode) for t in trials if t.edit} == {
        (scope, mode) for scope in ("last", "decode", "all") for mode in ("keep_error", "reconstruct")
    }
    assert {t.edit.row for t in trials if t.edit} == set(range(len(bench.bank)))
    lengths = {len(t.prompt) for t in trials}
    assert lengths >= {1, 2, 3, 32}
    assert len(lengths) > 20
    prompts = {t.prompt for t in trials}
    assert sum(any(len(a) < len(b) and b[: len(a)] == a for b in prompts) for a in prompts) > 20
    assert any(t.edit is None for t in trials)
    assert any(t.edit and t.edit.value is None for t in trials)
    assert None in captures
    assert {c.positions for c in captures if c} == {("last",), ("final",), ("last", "final"), ("decode",)}
    assert {case.batch_size for case in cases} >= {1, 2, 3, 4, 8}


LIES: dict[str, Callable[[TrialResult], TrialResult]] = {
    "another token": lambda r: dataclasses.replace(r, tokens=(*r.tokens[:-1], (r.tokens[-1] + 1) % VOCAB_SIZE)),
    "a token short": lambda r: dataclasses.replace(r, tokens=r.tokens[:-1]),
    "finish": lambda r: dataclasses.replace(r, finish={"eos": "length", "length": "eos"}[r.finish]),
    "edits applied": lambda r: dataclasses.replace(r, edits_applied=r.edits_applied + 1),
    "f before": lambda r: dataclasses.replace(r, f_before=0.5 if r.f_before is None else r.f_before + 0.01),
    "position": lambda r: dataclasses.replace(r, rows=_relabelled(r, position=1)),
    "token read": lambda r: dataclasses.replace(r, rows=_relabelled(r, token=1)),
    "trial": lambda r: dataclasses.replace(r, rows=_relabelled(r, trial=1)),
    "a residual": lambda r: dataclasses.replace(r, residuals=r.residuals + np.float32(0.05)),
    "a feature": lambda r: dataclasses.replace(r, features=r.features + np.float16(0.05)),
}


def _relabelled(result: TrialResult, **shift: int) -> tuple[CapturedRow, ...]:
    first, *rest = result.rows
    changed = dataclasses.replace(first, **{name: getattr(first, name) + by for name, by in shift.items()})
    return (changed, *rest)


class _Lying:
    def __init__(self, engine: TorchEngine, lie: Callable[[TrialResult], TrialResult]):
        self._engine, self._lie = engine, lie

    def generate(self, trials, capture=None):
        first, *rest = self._engine.generate(trials, capture)
        yield from (*rest, self._lie(first))


@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_result_is_found(bench, lie):
    seed = next(s for s in range(100) if _captures_everything(random_case(s, bench.bank, 4, VOCAB_SIZE, (6,))))
    case = random_case(seed, bench.bank, 4, VOCAB_SIZE, (6,))
    reference = reference_of(bench)
    check(torch_engine(bench), case, reference)
    with pytest.raises(AssertionError):
        check(lambda case: _Lying(torch_engine(bench)(case), LIES[lie]), case, reference)


def _captures_everything(case: Case) -> bool:
    [call] = case.calls
    return bool(call.capture and call.capture.rows and call.capture.residual_layers)


def test_a_token_is_accepted_at_a_boundary_of_the_distribution_only():
    draw = lambda seed: np.random.Generator(np.random.Philox(key=seed)).random(1)[0]  # noqa: E731
    seed = next(seed for seed in range(100) if 0.3 < draw(seed) < 0.7)
    trial = Trial(id=0, prompt=(5,), seed=seed, max_new_tokens=1)
    logits = torch.full((VOCAB_SIZE,), -100.0, dtype=torch.float64)
    uniform = draw(seed)
    below = np.log(uniform) - np.log1p(-uniform)  # two tokens whose boundary is the uniform itself
    logits[10], logits[50] = below, 0.0
    assert may_follow(logits, trial, 0, 10)
    assert may_follow(logits, trial, 0, 50)
    assert not any(may_follow(logits, trial, 0, token) for token in (5, 90))
    logits[10] += 1e-3
    assert may_follow(logits, trial, 0, 10)
    assert not may_follow(logits, trial, 0, 50)
