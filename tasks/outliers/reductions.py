"""What a forward pass leaves of a watched point: a few numbers for each dimension, sequence and token.

Nothing here keeps activations, and no occurrence becomes a Python object. `SiteBuffers` holds the reductions of one
batch at all points of a site, on the device where the points are; `observe` fills in one point.

The first position of each sequence, whose token carries massive activations, stays apart: its vectors are kept as they
are, and all other reductions leave it out. So results with and without it come from the same pass.

Axes: B sequences, S points, T positions, d dimensions. Criteria are in the order of `spec.CRITERIA`. A hit is a finite
|x|, upcast to float32, that is not less than the criterion's threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tasks.outliers.spec import CRITERIA, Criteria

FIRST_VALUES = 5
"""So many of a dimension's first outliers are kept."""


@dataclass(frozen=True)
class Thresholds:
    """The criteria as the reductions compare them."""

    absolute: float
    relative: float
    massive: float
    massive_ratio: float

    @classmethod
    def of(cls, criteria: Criteria) -> Thresholds:
        return cls(
            absolute=criteria.threshold,
            relative=criteria.relative_threshold,
            massive=criteria.massive_magnitude,
            massive_ratio=criteria.massive_ratio,
        )

    @cached_property
    def absolute_bits(self) -> np.int32:
        """The smallest float32 that is not less than the threshold, as bits."""
        return _bits(_not_less(self.absolute))

    @cached_property
    def massive_bits(self) -> np.int32:
        """The smallest float32 that is larger than the magnitude, as bits."""
        return _bits(_not_less(math.nextafter(self.massive, math.inf)))


@dataclass(frozen=True, eq=False)
class PointOutputs:
    """Where the reductions of one point go. Positions are the sequence's own, from 0; position 0 is left out of
    everything that has an axis of dimensions."""

    point: int
    rms: Tensor
    """[B, T] float64: root mean square of the token's vector, NaN where it holds NaN or infinity; written"""
    median: Tensor
    """[B, T] float32: lower median of the token's magnitudes, NaN like `rms`; written"""
    token_hits: Tensor
    """[B, T] int32: dimensions with an absolute hit; written"""
    nan: Tensor
    inf: Tensor
    """[B, T] int32: such values; written"""
    count: Tensor
    """[B, 3, d] int32: positions with a hit, by criterion; written"""
    negative: Tensor
    """[B, d] int32: absolute hits of a negative value; added to"""
    peak: Tensor
    """[B, d] float32: the absolute hit of largest magnitude, 0 without one; written"""
    peak_at: Tensor
    """[B, d] int32: its first position; written"""
    over_rms: Tensor
    """[B, d] float32: largest |x| / rms of its token among the hits of any criterion; raised"""
    over_median: Tensor
    """[B, d] float32: the same for the median; raised"""
    hits: Tensor
    """[B, T, d] uint8: bit c is set where criterion c is met; added to"""
    first_values: Tensor
    """[B, FIRST_VALUES, d] float32: the first absolute hits, by point and position; `filled` of them; added to"""
    first_points: Tensor
    first_positions: Tensor
    """[B, FIRST_VALUES, d] int32"""
    filled: Tensor
    """[B, d] int32"""


class SiteBuffers:
    """Reductions of a batch at the points of one site.

    start, length: [B] int64, column of each sequence's first token and its number of tokens: pads may be on any side.
    """

    def __init__(
        self, points: int, d: int, start: Tensor, length: Tensor, thresholds: Thresholds, device: torch.device
    ) -> None:
        batch, width = len(length), int(length.max())
        self.thresholds, self.device = thresholds, device
        self.start, self.length = start.to(device), length.to(device)

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.count = zeros(batch, points, len(CRITERIA), d)
        self.peak = zeros(batch, points, d, dtype=torch.float32)
        self.peak_at = zeros(batch, points, d)
        self.negative = zeros(batch, d)
        self.over_rms = zeros(batch, d, dtype=torch.float32)
        self.over_median = zeros(batch, d, dtype=torch.float32)
        self.hits = zeros(batch, width, d, dtype=torch.uint8)
        self.first_values = zeros(batch, FIRST_VALUES, d, dtype=torch.float32)
        self.first_points = zeros(batch, FIRST_VALUES, d)
        self.first_positions = zeros(batch, FIRST_VALUES, d)
        self.filled = zeros(batch, d)
        self.nan = zeros(batch, points, dtype=torch.int64)
        self.inf = zeros(batch, points, dtype=torch.int64)
        self.first = zeros(batch, points, d, dtype=torch.float32)
        """The vector at each sequence's first position."""
        self.first_rms = zeros(batch, points, dtype=torch.float64)
        self.first_median = zeros(batch, points, dtype=torch.float32)
        self._rows = torch.arange(batch, device=device)
        self._of_tokens = {name: zeros(batch, width) for name in ("token_hits", "nan", "inf")}
        self._of_tokens["rms"] = zeros(batch, width, dtype=torch.float64)
        self._of_tokens["median"] = zeros(batch, width, dtype=torch.float32)

    def observe(self, point: int, x: Tensor) -> Tensor:
        """Reduce x [B, columns, d], the activations of a point. Returns [B, T] int32: each token's absolute hits; the
        next point overwrites them."""
        if x.device != self.device:  # the last part of a model that is split over devices
            x = x.to(self.device)
        out = PointOutputs(
            point=point,
            **self._of_tokens,
            count=self.count[:, point],
            negative=self.negative,
            peak=self.peak[:, point],
            peak_at=self.peak_at[:, point],
            over_rms=self.over_rms,
            over_median=self.over_median,
            hits=self.hits,
            first_values=self.first_values,
            first_points=self.first_points,
            first_positions=self.first_positions,
            filled=self.filled,
        )
        reduce_point(x, self.start, self.length, self.thresholds, out)
        self.nan[:, point] = out.nan.sum(1)
        self.inf[:, point] = out.inf.sum(1)
        self.first[:, point] = x[self._rows, self.start]
        self.first_rms[:, point] = out.rms[:, 0]
        self.first_median[:, point] = out.median[:, 0]
        return out.token_hits


def reduce_point(x: Tensor, start: Tensor, length: Tensor, thresholds: Thresholds, out: PointOutputs) -> None:
    """Fill `out` from x [B, columns, d], of which sequence b has columns start[b] to start[b] + length[b]."""
    if x.device.type == "cuda":
        from tasks.outliers.reductions_cuda import reduce_point as on_device
    else:
        from tasks.outliers.reductions_cpu import reduce_point as on_device
    on_device(x, start, length, thresholds, out)


def _not_less(limit: float) -> np.float32:
    rounded = np.float32(limit)
    return rounded if float(rounded) >= limit else np.nextafter(rounded, np.float32(np.inf))


def _bits(value: np.float32) -> np.int32:
    return value.view(np.int32)
