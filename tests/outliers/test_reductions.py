"""The compiled reductions against the list of every occurrence."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tasks.outliers import reductions_cpu, reductions_cuda
from tasks.outliers.spec import Criteria
from tests.outliers.naive import nearest, occurrences, peaks, summary
from tests.outliers.states import described, draw, nearest_of, parts_of

POSITIONS = {"first": slice(0, 1), "rest": slice(1, None)}
LENGTHS = ([7, 3, 12], [1, 1], [5], [33, 40, 2, 19])


def assert_equals_reference(state, reference) -> None:
    found = described(state)
    assert found.keys() == reference.keys()
    for dim, expected in reference.items():
        mine = found[dim]
        np.testing.assert_array_equal(mine["count"], expected["count"], err_msg=f"dim {dim}")
        np.testing.assert_array_equal(mine["massive_peak"], expected["massive_peak"])
        for name in ("positions", "negative", "largest", "first"):
            assert mine[name] == expected[name], (dim, name)
        for name in ("over_rms", "over_median"):
            assert mine[name] == pytest.approx(expected[name], rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("d", [1, 8, 64, 100, 131])
def test_every_number_is_the_references(dtype, side, lengths, d) -> None:
    rng = np.random.default_rng([d, len(lengths)])
    criteria = Criteria(massive_ratio=20.0)
    sequences = [draw(rng, 5, n, d, dtype) for n in lengths]
    numbers = list(range(40, 40 + len(lengths)))
    parts = parts_of(sequences, numbers, criteria, side=side, dtype=dtype)
    found = [one for x, n in zip(sequences, numbers, strict=True) for one in occurrences(x, n, criteria)]
    assert any(one.position for one in found) or max(lengths) == 1
    for part, positions in POSITIONS.items():
        np.testing.assert_array_equal(parts[part].peak, peaks(sequences, positions))
        assert nearest_of(parts[part]) == nearest(dict(zip(numbers, sequences, strict=True)), positions, criteria)
    assert_equals_reference(parts["first"], summary([one for one in found if one.position == 0], 5))
    assert_equals_reference(parts["rest"], summary([one for one in found if one.position > 0], 5))


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_any_number_of_threads_gives_the_same(threads, monkeypatch) -> None:
    """More threads than sequences: each sequence is cut into segments."""
    monkeypatch.setattr(reductions_cpu, "_segments", lambda sequences: -(-threads // sequences))
    rng = np.random.default_rng(threads)
    criteria = Criteria()
    sequences = [draw(rng, 4, n, 90, "bfloat16") for n in (45, 3)]
    parts = parts_of(sequences, [0, 1], criteria, dtype="bfloat16")
    found = [one for n, x in enumerate(sequences) for one in occurrences(x, n, criteria)]
    assert_equals_reference(parts["rest"], summary([one for one in found if one.position > 0], 4))
    np.testing.assert_array_equal(parts["rest"].peak, peaks(sequences, POSITIONS["rest"]))


SHAPES = (([7, 3], 20), ([1, 1], 8), ([33, 2], 70))  # the last: more than one tile and more than one block
SIDES = ("left", "right")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "side", "lengths", "d"),
    [
        *(("bfloat16", side, *shape) for side, shape in product(SIDES, SHAPES)),
        *((dtype, side, *SHAPES[0]) for dtype, side in product(("float32", "float16"), SIDES)),
    ],
    ids=str,
)
def test_the_gpus_kernels_give_the_same(dtype, side, lengths, d, monkeypatch) -> None:
    """In Triton's interpreter where there is no GPU. Ratios are rounded differently, so values at the edge of the
    relative criterion are kept out of the drawing."""
    rng = np.random.default_rng([d, len(lengths), 1])
    sequences = [draw(rng, 3, n, d, dtype) for n in lengths]
    numbers = list(range(len(lengths)))
    criteria = Criteria()
    expected = parts_of(sequences, numbers, criteria, side=side, dtype=dtype)
    monkeypatch.setattr(reductions_cpu, "reduce_point", reductions_cuda.reduce_point)
    found = parts_of(sequences, numbers, criteria, side=side, dtype=dtype)
    for part in expected:
        assert_equals_reference(found[part], described(expected[part]))
        np.testing.assert_array_equal(found[part].peak, expected[part].peak)
        assert nearest_of(found[part]) == nearest_of(expected[part])
