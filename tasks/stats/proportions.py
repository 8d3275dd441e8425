"""Exact tests of two proportions, two-sided or in a planned direction, each distinct table computed once."""

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
def _fisher_given_margins(n_a: int, n_b: int, successes: int, greater: bool) -> tuple[int, NDArray[np.float64]]:
    """First possible k_a, and Fisher's p for each possible k_a from there on.

    Two-sided, p(k) is the total probability of all tables with the same margins that are no likelier than the one
    with k; `greater`, that of all tables with at least k.
    """
    first, last = max(0, successes - n_b), min(n_a, successes)
    pmf = stats.hypergeom(n_a + n_b, successes, n_a).pmf(np.arange(first, last + 1))
    if greater:
        return first, np.minimum(np.cumsum(pmf[::-1])[::-1], 1.0)
    ascending = np.sort(pmf)
    no_likelier = np.searchsorted(ascending, pmf * _TIE, side="right")
    return first, np.minimum(np.cumsum(ascending)[no_likelier - 1], 1.0)


def _fisher(k_a: int, n_a: int, k_b: int, n_b: int, greater: bool) -> float:
    first, p = _fisher_given_margins(n_a, n_b, k_a + k_b, greater)
    return float(p[k_a - first])


@lru_cache(maxsize=65_536)
def _boschloo(k_a: int, n_a: int, k_b: int, n_b: int, greater: bool) -> float:
    return _unconditional(stats.boschloo_exact, k_a, n_a, k_b, n_b, greater)


@lru_cache(maxsize=65_536)
def _barnard(k_a: int, n_a: int, k_b: int, n_b: int, greater: bool) -> float:
    return _unconditional(stats.barnard_exact, k_a, n_a, k_b, n_b, greater)


def _unconditional(test, k_a: int, n_a: int, k_b: int, n_b: int, greater: bool) -> float:
    if k_a + k_b in (0, n_a + n_b):
        return 1.0  # no other table is less extreme; scipy returns NaN here
    table = [[k_a, k_b], [n_a - k_a, n_b - k_b]]
    return min(float(test(table, alternative="greater" if greater else "two-sided").pvalue), 1.0)


_TESTS = {"fisher": _fisher, "boschloo": _boschloo, "barnard": _barnard}


def exact_test(
    k_a: ArrayLike, n_a: ArrayLike, k_b: ArrayLike, n_b: ArrayLike, test: Test = "fisher", direction: ArrayLike = 0
) -> NDArray[np.float64]:
    """p of H0: both proportions are equal, for each table; NaN where a group is empty.

    `direction`: 0 for a two-sided test; where the direction was fixed before the data were seen, 1 for the alternative
    that a's proportion is the larger one, -1 that b's is. `fisher` conditions on both margins (two-sided by summing
    the tables no likelier than the observed one, as scipy and R do). It is conservative; `boschloo` (1970; at least as
    powerful everywhere) and `barnard` (1945, pooled Wald statistic) condition on the group sizes alone and cost some
    20 ms a distinct table of tens of trials, half a second for hundreds.
    """
    (k_a, n_a), (k_b, n_b) = counts(k_a, n_a), counts(k_b, n_b)
    *tables, direction = np.broadcast_arrays(k_a, n_a, k_b, n_b, np.asarray(direction, dtype=np.float64))
    swapped = np.where(direction < 0, [tables[2], tables[3], tables[0], tables[1]], tables)
    asked = np.stack([*swapped, direction != 0], axis=-1)
    flat = asked.reshape(-1, 5)
    p = np.full(len(flat), np.nan)
    defined = ~np.isnan(flat).any(axis=1)
    distinct, where = np.unique(flat[defined].astype(np.int64), axis=0, return_inverse=True)
    one = _TESTS[test]
    found = [one(*table, bool(greater)) for *table, greater in distinct.tolist()]
    p[defined] = np.array(found, dtype=np.float64)[where.ravel()]
    return p.reshape(asked.shape[:-1])
