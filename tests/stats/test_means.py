import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from tasks.stats.means import Moments, cohens_d, welch

SAMPLES = hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats(-1e6, 1e6))


def test_welch_equals_scipy_for_many_variables():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, [1, 5, 0.1], (40, 3)), rng.normal(0.3, [2, 1, 0.1], (25, 3))
    ours = welch(Moments.of(x), Moments.of(y))
    reference = stats.ttest_ind(x, y, equal_var=False)
    assert ours.t == pytest.approx(reference.statistic)
    assert ours.df == pytest.approx(reference.df)
    assert ours.p == pytest.approx(reference.pvalue)


def test_far_tails_keep_their_digits():
    result = welch(Moments.from_sd(150, 10.0, 1.0), Moments.from_sd(150, 0.0, 1.0))
    assert 0 < result.p < 1e-200


def test_cohens_d():
    # pooled variance (8 + 2) / 4 = 2.5, difference 2
    assert cohens_d(Moments.of([1, 3, 5]), Moments.of([0, 1, 2])) == pytest.approx(2 / np.sqrt(2.5))
    unequal = cohens_d(Moments.of([0.0, 2.0]), Moments.of([5.0, 5.0, 5.0, 5.0]))
    assert unequal == pytest.approx(-4 / np.sqrt(2 / 4))


@given(st.lists(SAMPLES, min_size=1, max_size=5))
def test_merged_moments_equal_those_of_the_whole(parts):
    merged = Moments.of(parts[0])
    for part in parts[1:]:
        merged = merged.merge(Moments.of(part))
    whole = np.concatenate(parts)
    scale = max(1.0, np.abs(whole).max(initial=0))
    assert merged.count == len(whole)
    if len(whole):
        assert merged.mean == pytest.approx(whole.mean(), abs=1e-9 * scale)
    if len(whole) > 1:
        assert merged.sd == pytest.approx(whole.std(ddof=1), abs=1e-7 * scale)
    else:
        assert np.isnan(merged.sd)


def test_small_variance_beside_a_large_mean_survives():
    x = 1e8 + np.array([0.0, 1.0, 2.0])
    assert Moments.of(x[:1]).merge(Moments.of(x[1:])).variance == pytest.approx(1.0)


def test_summary_statistics_equal_samples():
    x = np.array([1.0, 2.0, 4.0])
    given_sd = Moments.from_sd(3, x.mean(), x.std(ddof=1))
    assert given_sd.m2 == pytest.approx(Moments.of(x).m2)


def test_zero_variance():
    zeros, ones, one_sample = (Moments.of(v) for v in ([0, 0, 0], [1, 1], [1]))
    with np.errstate(all="raise"):
        same, apart, undefined = welch(zeros, zeros), welch(ones, zeros), welch(one_sample, zeros)
    assert np.isnan([same.t, same.p, cohens_d(zeros, zeros)]).all()
    assert (apart.t, apart.p, cohens_d(ones, zeros)) == (np.inf, 0, np.inf)
    assert (welch(zeros, ones).t, cohens_d(zeros, ones)) == (-np.inf, -np.inf)
    assert np.isnan([undefined.t, undefined.p, cohens_d(one_sample, zeros)]).all()


def test_one_constant_group_is_fine():
    x, y = [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]
    reference = stats.ttest_ind(x, y, equal_var=False)
    assert welch(Moments.of(x), Moments.of(y)).p == pytest.approx(reference.pvalue)
