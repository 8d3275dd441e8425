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
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from tasks.outliers import nearest
from tasks.outliers.nearest import Nearest
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

    def nearest_share(self, top: Tensor, median: Tensor) -> Tensor:
        return nearest.shares(top, median, self.absolute, self.massive, self.massive_ratio)

    @cached_property
    def absolute_bits(self) -> np.int32:
        """The smallest float32 that is not less than the threshold, as bits."""
        return _bits(_not_less(self.absolute))

    @cached_property
    def massive_bits(self) -> np.int32:
        """The smallest float32 that is larger than the magnitude, as bits."""
        return _bits(_not_less(math.nextafter(self.massive, math.inf)))


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

        def written(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            """Filled in point by point, so it needs no beginning."""
            return torch.empty(shape, dtype=dtype, device=device)

        self.count = written(batch, points, len(CRITERIA), d)
        """[B, S, 3, d] int32: positions with a hit, by criterion."""
        self.peak = written(batch, points, d, dtype=torch.float32)
        """[B, S, d] float32: the finite value of largest magnitude, a hit or not; 0 where there is none."""
        self.peak_at = written(batch, points, d)
        """[B, S, d] int32: its first position."""
        self.massive_peak = written(batch, points, d, dtype=torch.float32)
        """[B, S, d] float32: largest magnitude of a massive hit, 0 without one."""
        self.negative = zeros(batch, d)
        """[B, d] int32: absolute hits of a negative value."""
        self.over_rms = zeros(batch, d, dtype=torch.float32)
        """[B, d] float32: largest |x| / root mean square of its token, among the hits of any criterion."""
        self.over_median = zeros(batch, d, dtype=torch.float32)
        """[B, d] float32: the same with the token's median magnitude, in tokens with an absolute or massive hit."""
        self.hits = zeros(batch, width, d, dtype=torch.uint8)
        """[B, T, d] uint8: bit c is set where criterion c is met at any point."""
        self.first_values = zeros(batch, FIRST_VALUES, d, dtype=torch.float32)
        """[B, FIRST_VALUES, d] float32: the first absolute hits, by point and position; `filled` of them."""
        self.first_points = zeros(batch, FIRST_VALUES, d)
        self.first_positions = zeros(batch, FIRST_VALUES, d)
        """[B, FIRST_VALUES, d] int32"""
        self.filled = zeros(batch, d)
        """[B, d] int32"""
        self.nan = written(batch, points)
        self.inf = written(batch, points)
        """[B, S] int32: such values, the first position included."""
        self.first = written(batch, points, d, dtype=torch.float32)
        """[B, S, d] float32: the vector at each sequence's first position."""
        self.rms = written(batch, width, dtype=torch.float64)
        """[B, T] float64: of each token at the last point, root mean square; NaN where it holds NaN or infinity."""
        self.median = written(batch, width, dtype=torch.float32)
        """[B, T] float32: of each token at the last point, lower median of the magnitudes; NaN like `rms`. 0 in tokens
        without a value that reaches the absolute threshold or the massive magnitude, where nobody asks for it."""
        self.token_top = written(batch, width, dtype=torch.float32)
        """[B, T] float32: of each token at the last point, largest magnitude; NaN like `rms`."""
        self.token_hits = written(batch, width)
        """[B, T] int32: of each token at the last point, dimensions with an absolute hit."""
        self.first_rms = written(batch, points, dtype=torch.float64)
        self.first_median = written(batch, points, dtype=torch.float32)
        """[B, S]: `rms` and `median` of each sequence's first token."""
        self.nearest: list[Nearest] = []
        """By point, [B]: what comes nearest to a massive activation in each sequence."""

    def observe(self, point: int, x: Tensor) -> None:
        """Reduce x [B, columns, d], the activations of a point; points come in order."""
        if x.device != self.device:  # the last part of a model that is split over devices
            x = x.to(self.device)
        if x.device.type == "cuda":
            from tasks.outliers.reductions_cuda import reduce_point
        else:
            from tasks.outliers.reductions_cpu import reduce_point
        reduce_point(x, point, self)
        self.nearest.append(self._nearest(x))

    def _nearest(self, x: Tensor) -> Nearest:
        """[B]: of the last point, x [B, columns, d]."""
        t = torch.arange(self.median.shape[1], device=self.device)
        share = self.thresholds.nearest_share(self.token_top, self.median)
        share = torch.where((t > 0) & (t < self.length[:, None]), share, 0)
        b, at = torch.arange(len(share), device=self.device), share.argmax(1)
        return nearest.of_tokens(x[b, self.start + at], share[b, at], self.median[b, at], b, at)

    @cached_property
    def arrays(self) -> SimpleNamespace:
        """The tensors as arrays of numpy that share their memory, on a CPU."""
        return SimpleNamespace(**{name: t.numpy() for name, t in vars(self).items() if isinstance(t, Tensor)})


def _not_less(limit: float) -> np.float32:
    rounded = np.float32(limit)
    return rounded if float(rounded) >= limit else np.nextafter(rounded, np.float32(np.inf))


def _bits(value: np.float32) -> np.int32:
    return value.view(np.int32)
