import numpy as np
import pytest
from scipy import stats

from tasks.stats.power import detectable_difference
from tasks.stats.proportions import exact_test


def power(n: int, difference: float, alpha: float) -> float:
    """Summed over all tables that Fisher's one-sided test rejects."""
    k_a, k_b = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    rejected = exact_test(k_a, n, k_b, n, direction=1) <= alpha
    weight = stats.binom.pmf(k_a, n, 0.5 + difference / 2) * stats.binom.pmf(k_b, n, 0.5 - difference / 2)
    return weight[rejected].sum()


@pytest.mark.parametrize(("n", "alpha"), [(20, 0.05), (60, 0.05), (60, 0.0125), (100, 0.0125)])
def test_that_difference_is_found_in_four_of_five_studies(n, alpha):
    assert power(n, detectable_difference(n, alpha), alpha) == pytest.approx(0.8, abs=0.03)


def test_more_trials_or_a_larger_alpha_detect_less():
    found = [detectable_difference(n, alpha) for n, alpha in ((60, 0.01), (60, 0.05), (250, 0.05), (100_000, 0.05))]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.01


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_trials_detect_nothing(n):
    assert detectable_difference(n, 0.01) is None
