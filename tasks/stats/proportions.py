"""Exact two-sided tests of two proportions, each distinct table computed once."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tasks.stats.intervals import counts

Test = Literal["fisher", "boschloo", "barnard"]

_TIE = 1 + 1e-7
"""Tables this close in probability count as equally likely (as in R's fisher.test)."""


@lru_cache(maxsize=65_536)
def _fisher_given_margins(n_a: int, n_b: int, successes: int) -> tuple[int, NDArray[np.float64]]:
    """First possible k_a, and Fisher's two-sided p for each possible k_a from there on.

    p(k) is the total probability of all tables with the same margins that are no likelier than the one with k.
    """
    first, last = max(0, successes - n_b), min(n_a, successes)
    pmf = stats.hypergeom(n_a + n_b, successes, n_a).pmf(np.arange(first, last + 1))
    ascending = np.sort(pmf)
    no_likelier = np.searchsorted(ascending, pmf * _TIE, side="right")
    return first, np.minimum(np.cumsum(ascending)[no_likelier - 1], 1.0)


def _fisher(k_a: int, n_a: int, k_b: int, n_b: int) -> float:
    first, p = _fisher_given_margins(n_a, n_b, k_a + k_b)
    return float(p[k_a - first])


@lru_cache(maxsize=65_536)
def _boschloo(k_a: int, n_a: int, k_b: int, n_b: int) -> float:
    return _unconditional(stats.boschloo_exact, k_a, n_a, k_b, n_b)


@lru_cache(maxsize=65_536)
def _barnard(k_a: int, n_a: int, k_b: int, n_b: int) -> float:
    return _unconditional(stats.barnard_exact, k_a, n_a, k_b, n_b)


def _unconditional(test, k_a: int, n_a: int, k_b: int, n_b: int) -> float:
    if k_a + k_b in (0, n_a + n_b):
        return 1.0  # no other table is less extreme; scipy returns NaN here
    return min(float(test([[k_a, k_b], [n_a - k_a, n_b - k_b]]).pvalue), 1.0)


_TESTS = {"fisher": _fisher, "boschloo": _boschloo, "barnard": _barnard}


def exact_test(
    k_a: ArrayLike, n_a: ArrayLike, k_b: ArrayLike, n_b: ArrayLike, test: Test = "fisher"
) -> NDArray[np.float64]:
    """Two-sided p of H0: both proportions are equal, for each table; NaN where a group is empty.

    `fisher` conditions on both margins (two-sided by summing the tables no likelier than the observed one, as
    scipy and R do). It is conservative; `boschloo` (1970; at least as powerful everywhere) and `barnard` (1945,
    pooled Wald statistic) condition on the group sizes alone and cost some 20 ms a distinct table.
    """
    (k_a, n_a), (k_b, n_b) = counts(k_a, n_a), counts(k_b, n_b)
    tables = np.stack(np.broadcast_arrays(k_a, n_a, k_b, n_b), axis=-1)
    flat = tables.reshape(-1, 4)
    p = np.full(len(flat), np.nan)
    defined = ~np.isnan(flat).any(axis=1)
    distinct, where = np.unique(flat[defined].astype(np.int64), axis=0, return_inverse=True)
    one = _TESTS[test]
    p[defined] = np.array([one(*table) for table in distinct.tolist()], dtype=np.float64)[where.ravel()]
    return p.reshape(tables.shape[:-1])
