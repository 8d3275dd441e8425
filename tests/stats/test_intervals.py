import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks.stats.intervals import newcombe, rate, wilson

COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


# Newcombe (1998), Statistics in Medicine 17:857, Table I, method 3
@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_published(k, n, low, high):
    assert np.round(wilson(k, n), 4) == pytest.approx([low, high])


# Newcombe (1998), Statistics in Medicine 17:873, Table II, method 10
@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((0, 10, 0, 10), -0.2775, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0),
        ((10, 10, 0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_published(table, low, high):
    assert np.round(newcombe(*table), 4) == pytest.approx([low, high])


@given(COUNTS, st.floats(0.001, 0.5))
def test_wilson_ends_solve_the_score_equation(kn, alpha):
    (k, n), z = kn, stats.norm.isf(alpha / 2)
    low, high = wilson(k, n, alpha)
    assert 0 <= low <= k / n <= high <= 1
    for end in (low, high):
        assert (k / n - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, abs=1e-9)
    assert (low < k / n) == (k > 0)
    assert (high > k / n) == (k < n)


@given(COUNTS, COUNTS)
def test_newcombe_against_the_formula_and_antisymmetric(a, b):
    (p, q), (la, ua), (lb, ub) = (rate(*a), rate(*b)), wilson(*a), wilson(*b)
    low, high = newcombe(*a, *b)
    assert low == pytest.approx(max(-1, p - q - np.hypot(p - la, ub - q)), abs=1e-9)
    assert high == pytest.approx(min(1, p - q + np.hypot(ua - p, q - lb)), abs=1e-9)
    assert newcombe(*b, *a) == pytest.approx((-high, -low), abs=1e-12)


def test_empty_groups_are_undefined_and_do_not_disturb_others():
    with np.errstate(all="raise"):
        low, high = wilson([0, 3], [0, 10])
        d_low, d_high = newcombe([0, 3], [0, 10], 1, 10)
    assert np.isnan([low[0], high[0], d_low[0], d_high[0]]).all()
    assert (low[1], high[1]) == pytest.approx(wilson(3, 10))
    assert (d_low[1], d_high[1]) == pytest.approx(newcombe(3, 10, 1, 10))


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 2), (0.5, 2), (1, 2.5), (float("nan"), 2)])
def test_counts_are_checked(k, n):
    with pytest.raises(ValueError, match="not a count"):
        wilson(k, n)
