"""False discovery rate over a whole family of tests."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


class Family(NamedTuple):
    q: NDArray[np.float64]
    """Same shape as p; NaN where p is NaN."""
    size: int
    """Tests in the family: those with a defined p."""
    untested: int
    """Tests without one. They are reported as not tested, and neither help nor hurt the others."""


def benjamini_hochberg(p: ArrayLike) -> Family:
    """Benjamini and Hochberg (1995) adjusted p-values: q_(i) = min over j >= i of p_(j) m / j.

    Reject where q <= alpha to hold the false discovery rate at alpha for independent or positively dependent
    tests. Pass every test that was looked at: the family is what was searched, not what was selected.
    """
    p = np.asarray(p, dtype=np.float64)
    if np.any((p < 0) | (p > 1)):
        raise ValueError("p-values outside 0..1")
    q = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested], method="bh")
    size = int(tested.sum())
    return Family(q, size, p.size - size)
