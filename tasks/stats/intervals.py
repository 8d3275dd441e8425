"""Score intervals of one proportion and of a difference of two; vectorised, undefined (NaN) where n = 0."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    low: Floats
    high: Floats


def counts(k: ArrayLike, n: ArrayLike) -> tuple[Floats, Floats]:
    """Successes and trials as broadcast float arrays, n = 0 as NaN; ValueError unless integers with 0 <= k <= n."""
    k, n = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    wrong = ~((k >= 0) & (k <= n) & (k == np.floor(k)) & (n == np.floor(n)))
    if wrong.any():
        i = np.flatnonzero(wrong.ravel())[0]
        raise ValueError(f"not a count: k={k.ravel()[i]}, n={n.ravel()[i]}; integers with 0 <= k <= n are needed")
    return k, np.where(n > 0, n, np.nan)


def rate(k: ArrayLike, n: ArrayLike) -> Floats:
    """k / n, NaN where n = 0."""
    k, n = counts(k, n)
    return k / n


def wilson(k: ArrayLike, n: ArrayLike, alpha: float = 0.05) -> Interval:
    """Wilson (1927) score interval of k / n at level 1 - alpha.

    With z the 1 - alpha/2 normal quantile and p = k/n:
    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    """
    k, n = counts(k, n)
    low, high = proportion_confint(k, n, alpha=alpha, method="wilson")
    return Interval(np.clip(low, 0, k / n), np.clip(high, k / n, 1))  # rounding must not exclude k / n


def newcombe(k_a: ArrayLike, n_a: ArrayLike, k_b: ArrayLike, n_b: ArrayLike, alpha: float = 0.05) -> Interval:
    """Hybrid score interval of k_a/n_a - k_b/n_b, without continuity correction.

    Newcombe (1998), Statistics in Medicine 17:873, method 10: with Wilson intervals (l, u) of each proportion,
    d - sqrt((p_a - l_a)^2 + (u_b - p_b)^2)  to  d + sqrt((u_a - p_a)^2 + (p_b - l_b)^2).
    """
    k_a, n_a = counts(k_a, n_a)
    k_b, n_b = counts(k_b, n_b)
    low, high = confint_proportions_2indep(
        k_a, n_a, k_b, n_b, method="newcomb", compare="diff", alpha=alpha, correction=False
    )
    return Interval(np.clip(low, -1, 1), np.clip(high, -1, 1))
