"""Linear functions of several independent proportions, such as a difference of two differences."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tasks.stats.intervals import counts

Floats = NDArray[np.float64]


class Linear(NamedTuple):
    estimate: Floats
    """sum_i c_i k_i / n_i."""
    low: Floats
    high: Floats
    p: Floats
    """One-sided, of H0: sum_i c_i p_i <= 0."""


def linear_function(k: ArrayLike, n: ArrayLike, c: ArrayLike, alpha: float = 0.05) -> Linear:
    """Estimate, interval at level 1 - alpha and test of sum_i c_i p_i; k, n, c [..., m], all c_i non-zero.

    Price and Bonett (2004), Computational Statistics & Data Analysis 45:449: Wald's interval after 2/m successes and
    2/m failures more in each of the m groups. With p_i = (k_i + 2/m) / (n_i + 4/m):
    sum c_i p_i +- z sqrt(sum c_i^2 p_i (1 - p_i) / (n_i + 4/m)). The test is the same statistic's, so that the interval
    at level 1 - 2 alpha excludes 0 from below exactly where p < alpha. NaN where a group is empty.
    """
    (k, n), c = counts(k, n), np.asarray(c, dtype=np.float64)
    more = 2 / k.shape[-1]
    p, n_more = (k + more) / (n + 2 * more), n + 2 * more
    centre = (c * p).sum(-1)
    error = np.sqrt((np.square(c) * p * (1 - p) / n_more).sum(-1))
    estimate, z = (c * k / n).sum(-1), stats.norm.isf(alpha / 2)
    # The added answers pull the centre towards none: where all groups agree, past the estimate.
    low, high = np.minimum(centre - z * error, estimate), np.maximum(centre + z * error, estimate)
    return Linear(estimate, low, high, stats.norm.sf(centre / error))
