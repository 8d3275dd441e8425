"""Permutation test of a difference of means, for many variables at once."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TOLERANCE = 1e-9
"""Relative size of a difference that rounding may cause: permutations this close to the observed one tie with it."""


def permutation_test(
    a: ArrayLike, b: ArrayLike, *, seed: int, resamples: int = 9_999, batch: int = 1_000
) -> NDArray[np.float64]:
    """Two-sided p of |mean(a) - mean(b)| when group labels are exchangeable; a [n_a, ...], b [n_b, ...].

    Exact, p = share of all relabellings (the observed one among them) at least as extreme, if there are at most
    `resamples` of them. Otherwise p = (1 + extreme) / (1 + resamples) over random relabellings, which is valid
    for any number of them (Phipson and Smyth 2010, doi 10.2202/1544-6115.1585). All variables see the same
    relabellings, so dependence between variables is kept. NaN everywhere if a group is empty.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    shape, (n_a, n_b) = a.shape[1:], (len(a), len(b))
    if n_a == 0 or n_b == 0:
        return np.full(shape, np.nan)
    pooled = np.concatenate([a, b]).reshape(n_a + n_b, -1)
    pooled = pooled - pooled.mean(axis=0)
    # With centred data, mean_a - mean_b = sum_a (1/n_a + 1/n_b): the sum over group a orders the relabellings.
    observed = np.abs(pooled[:n_a].sum(axis=0))
    threshold = observed - _TOLERANCE * np.abs(pooled).sum(axis=0)
    exact = comb(n_a + n_b, n_a) <= resamples
    chosen = _all_choices(n_a + n_b, n_a) if exact else _random_choices(n_a + n_b, n_a, resamples, seed)
    extreme = np.zeros(pooled.shape[1], dtype=np.int64)
    for start in range(0, len(chosen), batch):
        block = chosen[start : start + batch]
        labels = np.zeros((len(block), n_a + n_b))
        np.put_along_axis(labels, block, 1.0, axis=1)
        extreme += (np.abs(labels @ pooled) >= threshold).sum(axis=0)
    p = extreme / len(chosen) if exact else (1 + extreme) / (1 + resamples)
    return p.reshape(shape)


def _all_choices(n: int, k: int) -> NDArray[np.int64]:
    return np.array(list(combinations(range(n), k)), dtype=np.int64)


def _random_choices(n: int, k: int, resamples: int, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n)[:k] for _ in range(resamples)])
