import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks.stats.proportions import exact_test


def test_tea_tasting():
    assert exact_test(3, 4, 1, 4) == pytest.approx(0.4857143, abs=1e-7)


@pytest.mark.parametrize(("n_a", "n_b"), [(7, 7), (5, 9), (1, 6)])
def test_fisher_equals_scipy_on_every_table(n_a, n_b):
    for k_a in range(n_a + 1):
        for k_b in range(n_b + 1):
            expected = stats.fisher_exact([[k_a, k_b], [n_a - k_a, n_b - k_b]]).pvalue
            assert exact_test(k_a, n_a, k_b, n_b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("direction", "alternative"), [(1, "greater"), (-1, "less")])
@pytest.mark.parametrize(("n_a", "n_b"), [(7, 7), (5, 9), (1, 6)])
def test_one_sided_fisher_equals_scipy_on_every_table(n_a, n_b, direction, alternative):
    k_a, k_b = np.meshgrid(np.arange(n_a + 1), np.arange(n_b + 1), indexing="ij")
    found = exact_test(k_a, n_a, k_b, n_b, direction=direction)
    for a, b in np.ndindex(found.shape):
        expected = stats.fisher_exact([[a, b], [n_a - a, n_b - b]], alternative=alternative).pvalue
        assert found[a, b] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("test", ["boschloo", "barnard"])
def test_one_sided_unconditional_tests_equal_scipy(test):
    reference = {"boschloo": stats.boschloo_exact, "barnard": stats.barnard_exact}[test]
    table = [[9, 4], [3, 11]]
    greater = reference(table, alternative="greater").pvalue
    assert exact_test([9, 4, 0], [12, 15, 12], [4, 9, 0], [15, 12, 15], test, [1, -1, 1]) == pytest.approx(
        [greater, greater, 1]
    )
    less = reference(table, alternative="less").pvalue
    assert exact_test(9, 12, 4, 15, test, -1) == pytest.approx(less)


def test_each_table_has_its_own_direction():
    two_sided, greater, less = exact_test([12] * 3, 20, [5] * 3, 20, direction=[0, 1, -1])
    assert greater < two_sided < less
    assert greater + less > 1, "both hold the observed table"


@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_fisher_equals_scipy_on_larger_tables(n_a, n_b, data):
    k_a, k_b = data.draw(st.integers(0, n_a)), data.draw(st.integers(0, n_b))
    expected = stats.fisher_exact([[k_a, k_b], [n_a - k_a, n_b - k_b]]).pvalue
    p = exact_test(k_a, n_a, k_b, n_b)
    assert p == pytest.approx(expected, rel=1e-6)
    assert p == pytest.approx(exact_test(k_b, n_b, k_a, n_a), rel=1e-9)
    assert p == pytest.approx(exact_test(n_a - k_a, n_a, n_b - k_b, n_b), rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_no_difference_and_no_variation(n):
    assert exact_test([0, n], n, [0, n], n).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("test", ["boschloo", "barnard"])
def test_unconditional_tests_equal_scipy(test):
    reference = {"boschloo": stats.boschloo_exact, "barnard": stats.barnard_exact}[test]
    for k_a, k_b in [(3, 9), (0, 5), (10, 12)]:
        expected = reference([[k_a, k_b], [12 - k_a, 15 - k_b]]).pvalue
        assert exact_test(k_a, 12, k_b, 15, test) == pytest.approx(expected)
    assert exact_test([0, 12], 12, [0, 15], 15, test).tolist() == [1, 1]


@pytest.mark.parametrize(("test", "rate"), [("fisher", 0.3), ("boschloo", 0.3), ("barnard", 0.5)])
def test_size_is_at_most_alpha(test, rate):
    """Summed over all tables, not simulated: P(p <= 0.05) under equal rates."""
    n_a, n_b = 8, 11
    k_a, k_b = np.meshgrid(np.arange(n_a + 1), np.arange(n_b + 1), indexing="ij")
    weight = stats.binom.pmf(k_a, n_a, rate) * stats.binom.pmf(k_b, n_b, rate)
    assert weight[exact_test(k_a, n_a, k_b, n_b, test) <= 0.05].sum() <= 0.05


def test_empty_groups_are_undefined():
    p = exact_test([0, 2, 0], [0, 5, 3], [1, 2, 0], [5, 5, 0])
    assert np.isnan(p[[0, 2]]).all()
    assert p[1] == pytest.approx(1)


def test_a_large_family_takes_seconds():
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    p = exact_test(rng.binomial(60, 0.3, 200_000), 60, rng.binomial(30, 0.3, 200_000), 30)
    assert p.shape == (200_000,)
    assert time.perf_counter() - start < 5
