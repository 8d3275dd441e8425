import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks.stats.linear import linear_function

CELLS = st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1)), min_size=2, max_size=5)


def test_two_groups_are_agresti_and_caffo():
    """Agresti and Caffo (2000), American Statistician 54:280: a success and a failure more in each of two groups."""
    found = linear_function([56, 48], [70, 80], [1, -1])
    p = np.array([57 / 72, 49 / 82])
    half = stats.norm.ppf(0.975) * np.sqrt((p * (1 - p) / [72, 82]).sum())
    assert found.estimate == pytest.approx(56 / 70 - 48 / 80)
    assert (found.low, found.high) == pytest.approx((p[0] - p[1] - half, p[0] - p[1] + half))


@given(CELLS)
def test_interval_holds_the_estimate_and_changes_sign_with_the_coefficients(cells):
    n = np.array([n for n, _ in cells])
    k = np.array([round(n * share) for n, share in cells])
    c = np.where(np.arange(len(n)) % 2, -1.0, 1.0)
    one, other = linear_function(k, n, c), linear_function(k, n, -c)
    assert one.low <= one.estimate <= one.high
    assert (one.low, one.estimate) == pytest.approx((-other.high, -other.estimate))
    assert one.p + other.p == pytest.approx(1)


@pytest.mark.parametrize("rates", [(0.6, 0.3), (0.9, 0.5), (0.3, 0.05), (0.95, 0.6), (0.5, 0.5)])
def test_size_and_coverage_of_a_difference_of_differences(rates):
    """Summed over all tables of 10 trials a cell, not simulated."""
    n, c = 10, np.array([1, -1, -1, 1])
    k = np.stack(np.meshgrid(*[np.arange(n + 1)] * 4, indexing="ij"), axis=-1)
    weight = np.prod([stats.binom.pmf(k[..., i], n, rates[i % 2]) for i in range(4)], axis=0)
    found = linear_function(k, np.full(4, n), c)
    assert weight[found.p <= 0.05].sum() <= 0.055
    assert weight[(found.low <= 0) & (found.high >= 0)].sum() >= 0.94


def test_any_shape_and_empty_groups_are_undefined():
    found = linear_function([[3, 2, 1], [0, 0, 1]], [[5, 5, 5], [5, 0, 5]], [[1, -1, 1], [1, 1, 1]])
    assert found.estimate[0] == pytest.approx(0.4)
    assert np.isnan([found.estimate[1], found.low[1], found.high[1], found.p[1]]).all()
