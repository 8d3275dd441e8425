"""Merged states are the state of all sequences, bit for bit, in any order and any grouping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.artifacts import tensors
from tasks.outliers.merge import merge_parts, merge_sites, over_positions
from tasks.outliers.spec import Criteria
from tasks.outliers.state import PartState, SiteState
from tests.outliers.naive import occurrences, summary
from tests.outliers.states import assert_same_bits, described, draw, parts_of
from tests.outliers.test_reductions import assert_equals_reference

CRITERIA = Criteria()
POINTS, D = 4, 70


@pytest.fixture(scope="module")
def sequences() -> list[np.ndarray]:
    """Of different lengths, with equal values in several of them."""
    rng = np.random.default_rng(1)
    drawn = [draw(rng, POINTS, int(n), D, "bfloat16") for n in rng.integers(1, 30, 12)]
    drawn[7] = drawn[2].copy()
    return drawn


def state_of(sequences: list[np.ndarray], numbers: list[int]) -> dict[str, PartState]:
    return parts_of([sequences[n] for n in numbers], numbers, CRITERIA, dtype="bfloat16")


@pytest.fixture(scope="module")
def together(sequences) -> dict[str, PartState]:
    """All sequences in one batch."""
    return state_of(sequences, list(range(len(sequences))))


@pytest.mark.parametrize("part", ["first", "rest"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_grouping_and_order(sequences, together, part, data) -> None:
    order = data.draw(st.permutations(range(len(sequences))))
    edges = sorted(data.draw(st.sets(st.integers(1, len(order) - 1), max_size=6)))
    groups = [sorted(order[a:b]) for a, b in zip([0, *edges], [*edges, len(order)], strict=True)]
    states = [state_of(sequences, group)[part] for group in groups]
    assert_same_bits(merge_parts(states), together[part])
    halves = [merge_parts(half) for half in (states[::2], states[1::2]) if half]
    assert_same_bits(merge_parts(halves), together[part])


def test_all_positions_are_both_parts(sequences, together) -> None:
    nothing = np.zeros(POINTS, np.int64)
    site = SiteState(together["first"], together["rest"], 12, np.zeros((2, D), np.int64), nothing, nothing)
    found = [one for n, x in enumerate(sequences) for one in occurrences(x, n, CRITERIA)]
    whole = over_positions(site, "all")
    assert_equals_reference(whole, summary(found, POINTS))
    assert whole.tokens == sum(x.shape[1] for x in sequences)
    assert described(over_positions(site, "without_first")).keys() == {o.dim for o in found if o.position}


def test_a_state_goes_through_a_file(sequences, together) -> None:
    nan = np.arange(POINTS)
    site = SiteState(together["first"], together["rest"], 12, np.arange(2 * D).reshape(2, D), nan, nan + 1)
    buffers, _ = tensors.serialize(site.arrays())
    again = SiteState.from_arrays(tensors.deserialize(b"".join(bytes(b) for b in buffers)))
    for part in ("first", "rest"):
        assert_same_bits(getattr(again, part), together[part])
    twice = merge_sites([again, again])
    assert twice.sequences == 24
    np.testing.assert_array_equal(twice.recurrence, 2 * site.recurrence)
    np.testing.assert_array_equal(twice.inf, 2 * site.inf)


def test_states_of_different_models_are_refused(together) -> None:
    other = PartState.without_hits(D + 1, POINTS, 5, np.zeros(0, np.int32))
    with pytest.raises(ValueError, match="different models"):
        merge_parts([together["rest"], other])


def test_size_does_not_grow_with_the_sequences() -> None:
    rng = np.random.default_rng(2)
    few, many = (
        merge_parts(parts_of([draw(rng, POINTS, 20, D)], [n], CRITERIA)["rest"] for n in range(count))
        for count in (30, 120)
    )
    size = lambda state: sum(array.nbytes for array in state.arrays().values())  # noqa: E731
    assert size(many) <= size(few) * 1.05
