"""Means of two groups, for many variables at once: mergeable moments, Welch's t, Cohen's d."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations from the mean (M2), elementwise over variables.

    `merge` is Chan, Golub and LeVeque (1979); a merge of parts equals the moments of the whole up to rounding.
    """

    count: Floats
    mean: Floats
    m2: Floats

    @classmethod
    def of(cls, samples: ArrayLike, axis: int = 0) -> Moments:
        """Moments along `axis` of an array of samples (accumulated in float64); count 0, mean 0 of no samples."""
        x = np.asarray(samples, dtype=np.float64)
        n = x.shape[axis]
        mean = x.mean(axis=axis) if n else np.zeros(np.delete(x.shape, axis))
        m2 = np.square(x - np.expand_dims(mean, axis)).sum(axis=axis)
        return cls(np.full(mean.shape, float(n)), np.asarray(mean), np.asarray(m2))

    @classmethod
    def from_sd(cls, count: ArrayLike, mean: ArrayLike, sd: ArrayLike) -> Moments:
        """From summary statistics, with the SD at ddof = 1."""
        count, mean, sd = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (count, mean, sd)))
        return cls(count, mean, np.square(sd) * (count - 1))

    def merge(self, other: Moments) -> Moments:
        count = self.count + other.count
        share = np.divide(other.count, count, out=np.zeros_like(count), where=count > 0)
        delta = other.mean - self.mean
        return Moments(count, self.mean + delta * share, self.m2 + other.m2 + np.square(delta) * self.count * share)

    @property
    def variance(self) -> Floats:
        """Unbiased (ddof = 1); NaN for fewer than two samples."""
        return np.divide(self.m2, self.count - 1, out=np.full_like(self.mean, np.nan), where=self.count > 1)

    @property
    def sd(self) -> Floats:
        return np.sqrt(self.variance)


class Welch(NamedTuple):
    t: Floats
    df: Floats
    p: Floats


def welch(a: Moments, b: Moments) -> Welch:
    """Welch's (1947) two-sided t-test of mean(a) = mean(b), with Satterthwaite's degrees of freedom.

    With v = variance / n: t = (mean_a - mean_b) / sqrt(v_a + v_b),
    df = (v_a + v_b)^2 / (v_a^2 / (n_a - 1) + v_b^2 / (n_b - 1)).

    NaN where a group has fewer than two samples, and where both groups are constant at the same value. Where both
    are constant at different values, the limit is given: t = +-inf, df NaN, p = 0.
    """
    va, vb = a.variance / a.count, b.variance / b.count
    difference = a.mean - b.mean
    with np.errstate(divide="ignore", invalid="ignore"):
        t = difference / np.sqrt(va + vb)
        df = np.square(va + vb) / (np.square(va) / (a.count - 1) + np.square(vb) / (b.count - 1))
        p = np.where(np.isinf(t), 0.0, 2 * special.stdtr(df, -np.abs(t)))
    return Welch(t, df, p)


def cohens_d(a: Moments, b: Moments) -> Floats:
    """(mean_a - mean_b) / pooled SD, with pooled variance (M2_a + M2_b) / (n_a + n_b - 2).

    NaN where a group has fewer than two samples or both are constant at the same value; +-inf where they are
    constant at different values.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = np.sqrt((a.m2 + b.m2) / (a.count + b.count - 2))
        d = (a.mean - b.mean) / pooled
    return np.where((a.count > 1) & (b.count > 1), d, np.nan)
