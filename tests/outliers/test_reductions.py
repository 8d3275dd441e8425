"""The compiled reductions against the list of every occurrence."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.outliers.spec import Criteria
from tests.outliers.naive import occurrences, summary
from tests.outliers.states import described, draw, parts_of

LENGTHS = ([7, 3, 12], [1, 1], [5], [33, 40, 2, 19])


def assert_equals_reference(state, reference) -> None:
    found = described(state)
    assert found.keys() == reference.keys()
    for dim, expected in reference.items():
        mine = found[dim]
        np.testing.assert_array_equal(mine["count"], expected["count"], err_msg=f"dim {dim}")
        np.testing.assert_array_equal(mine["peak"], expected["peak"])
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
    criteria = Criteria()
    sequences = [draw(rng, 5, n, d, dtype) for n in lengths]
    numbers = list(range(40, 40 + len(lengths)))
    parts = parts_of(sequences, numbers, criteria, side=side, dtype=dtype)
    found = [one for x, n in zip(sequences, numbers, strict=True) for one in occurrences(x, n, criteria)]
    assert any(one.position for one in found) or max(lengths) == 1
    assert_equals_reference(parts["first"], summary([one for one in found if one.position == 0], 5))
    assert_equals_reference(parts["rest"], summary([one for one in found if one.position > 0], 5))
