import numpy as np
import pytest
from scipy import stats

from tasks.stats.permutation import permutation_test


def distance(x, y, axis):
    return np.abs(x.mean(axis=axis) - y.mean(axis=axis))


def test_exact_equals_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 4, (5, 6)), rng.integers(0, 4, (6, 6))
    reference = stats.permutation_test((a, b), distance, alternative="greater", n_resamples=np.inf, axis=0)
    assert permutation_test(a, b, seed=0) == pytest.approx(reference.pvalue)


def test_of_a_share_equals_fisher_where_two_sided_definitions_agree():
    """With equal group sizes the distribution is symmetric, and Fisher's tables order like |difference|."""
    a, b = np.repeat([1, 0], [5, 1]), np.repeat([1, 0], [1, 5])
    assert permutation_test(a, b, seed=0) == pytest.approx(stats.fisher_exact([[5, 1], [1, 5]]).pvalue)


def test_sampled_is_near_exact_never_zero_and_seeded():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.5, 1, 9), rng.normal(0, 1, 8)
    exact = permutation_test(a, b, seed=0, resamples=30_000)
    sampled = permutation_test(a, b, seed=0, resamples=9_999)
    assert sampled == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 9_999))
    assert sampled == permutation_test(a, b, seed=0, resamples=9_999)
    assert sampled != permutation_test(a, b, seed=1, resamples=9_999)
    assert permutation_test(np.ones(20), np.zeros(20), seed=0, resamples=99) == pytest.approx(0.01)


def test_valid_under_the_null():
    rng = np.random.default_rng(3)
    p = permutation_test(rng.normal(size=(12, 4000)), rng.normal(size=(9, 4000)), seed=0, resamples=199)
    for alpha in (0.01, 0.05, 0.2):
        assert (p <= alpha).sum() <= stats.binom.ppf(0.9999, 4000, alpha)


def test_a_variable_alone_gives_the_same_p_as_among_others():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(15, 3)), rng.normal(size=(15, 3))
    together = permutation_test(a, b, seed=5, resamples=500)
    alone = [permutation_test(a[:, i], b[:, i], seed=5, resamples=500) for i in range(3)]
    assert together.tolist() == alone


def test_no_variation_and_empty_groups():
    assert permutation_test(np.full((4, 2), 0.1), np.full((5, 2), 0.1), seed=0).tolist() == [1, 1]
    assert np.isnan(permutation_test(np.empty((0, 3)), np.ones((4, 3)), seed=0)).all()
