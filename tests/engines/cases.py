"""Random mixes of trials for any engine, and the check of what it returns against the naive loop.

A case is one engine's life: its batch size and end tokens, then several calls, so that whatever a call leaves behind
(buffers, kept prefixes, slots) meets the next one. Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tasks.engines.bank import Bank
from tasks.engines.interface import Capture, CapturedRow, Edit, Engine, Trial, TrialResult, expected_edits
from tests.engines.reference import Expected, Reference

POSITIONS = (("last",), ("final",), ("last", "final"), ("decode",))
VALUES = (0.0, 1.5, -4.0, 25.0)
RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""Tolerances of float32 values: relative to the largest entry of a vector, and absolute."""
HALF = 1e-3
"""Relative tolerance of what is stored as float16."""


@dataclass(frozen=True)
class Call:
    trials: tuple[Trial, ...]
    capture: Capture | None


@dataclass(frozen=True)
class Case:
    seed: int
    batch_size: int
    """Smaller than the number of trials of a call, so that slots are refilled."""
    end_tokens: frozenset[int]
    calls: tuple[Call, ...]

    @property
    def n_trials(self) -> int:
        return sum(len(call.trials) for call in self.calls)


@dataclass
class Agreement:
    """What a check compared."""

    trials: int = 0
    tokens: int = 0
    captured: int = 0
    ended: int = 0
    """Trials that an end token ended."""
    accepted: int = 0
    """Tokens accepted because the trial's uniform lies within rounding of a boundary."""

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def random_case(
    seed: int,
    bank: Bank,
    n_layers: int,
    vocabulary: int,
    n_trials: tuple[int, ...] = (12, 7),
    longest_prompt: int = 32,
    longest_answer: int = 10,
) -> Case:
    """One call for each entry of n_trials. Tokens are drawn from ids 3 and up."""
    rng = np.random.default_rng(seed)
    prompts = _prompts(rng, vocabulary, longest_prompt)
    calls = tuple(
        Call(_trials(rng, n, prompts, len(bank), longest_answer), _capture(rng, len(bank), n_layers)) for n in n_trials
    )
    end_tokens = frozenset(rng.choice(vocabulary, size=rng.integers(0, vocabulary // 12 + 2), replace=False).tolist())
    few_or_many = rng.integers(1, 5) if rng.random() < 0.5 else rng.integers(1, max(n_trials))
    return Case(seed, min(int(few_or_many), max(n_trials) - 1), end_tokens, calls)


def check(make_engine: Callable[[Case], Engine], case: Case, reference: Reference) -> Agreement:
    """Run a case and compare every field of every result; raises AssertionError with the first difference."""
    engine, agreement = make_engine(case), Agreement()
    for number, call in enumerate(case.calls):
        results = list(engine.generate(call.trials, call.capture))
        assert sorted(r.id for r in results) == sorted(t.id for t in call.trials), f"case {case.seed}, call {number}"
        by_id = {result.id: result for result in results}
        for trial in call.trials:
            try:
                agreement += _compare(trial, by_id[trial.id], call.capture, case.end_tokens, reference)
            except AssertionError as error:
                raise AssertionError(f"case {case.seed}, call {number}, {trial}: {error}") from error
    return agreement


def _prompts(rng: np.random.Generator, vocabulary: int, longest: int) -> list[tuple[int, ...]]:
    """Of length 1 and more; some begin others, some share a beginning and then differ."""
    draw = lambda n: tuple(rng.integers(3, vocabulary, n).tolist())  # noqa: E731
    long = draw(longest)
    cut = int(rng.integers(1, longest))
    branch = long[:cut] + draw(int(rng.integers(1, longest - cut + 1)))
    return [long, long[:cut], branch, draw(1), draw(int(rng.integers(2, longest))), draw(int(rng.integers(2, 6)))]


def _trials(
    rng: np.random.Generator, n: int, prompts: list[tuple[int, ...]], n_rows: int, longest_answer: int
) -> tuple[Trial, ...]:
    ids = rng.choice(10 * n, size=n, replace=False).tolist()
    few = prompts if rng.random() < 0.5 else [prompts[i] for i in rng.choice(len(prompts), 2, replace=False)]
    return tuple(
        Trial(
            id=i,
            prompt=few[rng.integers(len(few))],
            seed=int(rng.integers(2**64, dtype=np.uint64)),
            edit=_edit(rng, n_rows) if rng.random() < 0.85 else None,
            max_new_tokens=int(rng.integers(1, longest_answer + 1)),
            temperature=float(rng.choice([0.0, 0.7, 1.0, 1.3])),
            top_p=float(rng.choice([1.0, 0.9, 0.5])),
        )
        for i in ids
    )


def _edit(rng: np.random.Generator, n_rows: int) -> Edit:
    mode = str(rng.choice(["keep_error", "keep_error", "reconstruct"]))
    scope = str(rng.choice(["last", "decode", "all"]))
    value = float(rng.choice(VALUES)) if rng.random() < 0.5 else float(rng.normal() * 4)
    if mode == "reconstruct" and rng.random() < 0.3:
        value = None
    return Edit(int(rng.integers(n_rows)), value, scope, mode)


def _capture(rng: np.random.Generator, n_rows: int, n_layers: int) -> Capture | None:
    kind = rng.integers(5)
    if kind == 0:
        return None
    rows = rng.choice(n_rows, size=rng.integers(1, n_rows + 1), replace=False).tolist() if kind != 1 else ()
    layers = rng.choice(n_layers, size=rng.integers(1, n_layers + 1), replace=False).tolist() if kind != 2 else ()
    return Capture(tuple(rows), tuple(layers), POSITIONS[rng.integers(len(POSITIONS))])


def _compare(
    trial: Trial, got: TrialResult, capture: Capture | None, end_tokens: frozenset[int], reference: Reference
) -> Agreement:
    expected, accepted = reference.follow(trial, end_tokens, got.tokens)
    assert got.tokens == expected.tokens
    ended = got.tokens[-1] in end_tokens
    assert got.finish == ("eos" if ended else "length")
    assert got.edits_applied == expected_edits(trial, len(got.tokens))
    assert _is_one_of(got.f_before, expected.f_before, RELATIVE), f"f_before {got.f_before}, not {expected.f_before}"
    delta = got.relative_delta
    assert _is_one_of(delta, expected.relative_delta, RELATIVE), (
        f"relative_delta {delta}, not {expected.relative_delta}"
    )
    _compare_captures(trial, got, capture or Capture(), expected, reference)
    return Agreement(1, len(got.tokens), len(got.rows), int(ended), accepted)


def _compare_captures(
    trial: Trial, got: TrialResult, capture: Capture, expected: Expected, reference: Reference
) -> None:
    labels = [] if capture.empty else _labels(trial, got.tokens, capture)
    assert list(got.rows) == labels
    assert (got.features is None) == (not capture.rows)
    assert (got.residuals is None) == (not capture.residual_layers)
    if capture.rows:
        assert (got.features.dtype, got.features.shape) == (np.float16, (len(labels), len(capture.rows)))
    if capture.residual_layers:
        shape = (len(labels), len(capture.residual_layers), reference.layout.d_model)
        assert (got.residuals.dtype, got.residuals.shape) == (np.float32, shape)
    for n, label in enumerate(labels):
        for k, row in enumerate(capture.rows):
            h = expected.stream[int(reference.bank.layer[row])][label.position]
            wanted, found = reference.activations(row, h), float(got.features[n, k])
            assert _is_one_of(found, wanted, HALF), f"{label}, bank row {row}: feature {found}, not {wanted}"
        for k, layer in enumerate(capture.residual_layers):
            wanted = expected.stream[layer][label.position].numpy()
            worst = float(np.abs(got.residuals[n, k] - wanted).max())
            limit = ABSOLUTE + RELATIVE * float(np.abs(wanted).max())
            assert worst <= limit, f"{label}, layer {layer}: residual off by {worst}, more than {limit}"


def _labels(trial: Trial, tokens: tuple[int, ...], capture: Capture) -> list[CapturedRow]:
    """By position; `last` before `final` where both are the same one."""
    text = trial.prompt + tokens
    first, final = len(trial.prompt) - 1, len(text) - 2
    of_kind = {"last": [first], "final": [final], "decode": range(first, final + 1)}
    kinds = [kind for kind in ("last", "final", "decode") if kind in capture.positions]
    return [CapturedRow(trial.id, kind, position, text[position]) for kind in kinds for position in of_kind[kind]]


def _is_one_of(found: float | None, wanted: tuple[float, ...], relative: float) -> bool:
    if found is None or not wanted:
        return found is None and not wanted
    return any(abs(found - value) <= ABSOLUTE + relative * max(1.0, abs(value)) for value in wanted)
