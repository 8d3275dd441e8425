"""What comes nearest to a massive activation, so that "there is none" says how far from it the model is.

An activation is massive where its magnitude is larger than one limit and at least so many times its token's median
magnitude. How near it comes is the smaller of its shares of the two, so in each token the largest magnitude is nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.outliers.examples import NONE


@dataclass(frozen=True, eq=False)
class Nearest:
    """One activation of each of some sets; all arrays have one shape. Where there is none, `share` is 0."""

    share: Any
    """float64: the smaller of |value| / magnitude and |value| / (ratio * median)"""
    value: Any
    median: Any
    """float32"""
    dim: Any
    sequence: Any
    position: Any
    """int32; of a batch, `sequence` is the row"""

    @classmethod
    def none(cls, n: int) -> Nearest:
        places = (np.full(n, NONE, np.int32) for _ in range(3))
        return cls(np.zeros(n), np.zeros(n, np.float32), np.zeros(n, np.float32), *places)

    def map(self, function: Callable[[Any], Any]) -> Nearest:
        return Nearest(*(function(getattr(self, field.name)) for field in fields(self)))

    def raise_to(self, other: Nearest) -> None:
        """Take from `other` (arrays of numpy) what is nearer; of equal ones the first by sequence and position."""
        place = [one.sequence.astype(np.int64) << 32 | one.position for one in (self, other)]
        better = (other.share > self.share) | ((other.share == self.share) & (place[1] < place[0]))
        for field in fields(self):
            getattr(self, field.name)[better] = getattr(other, field.name)[better]


def shares(top: Tensor, median: Tensor, absolute: float, magnitude: float, ratio: float) -> Tensor:
    """float64: how near the largest magnitude `top` of tokens comes; 0 where no value is an outlier, or one is NaN.

    top, median: float32 of one shape; NaN in tokens that hold NaN or infinity.
    """
    exact = top.double()
    asked = (exact >= absolute) | (exact > magnitude)
    return torch.where(asked, torch.minimum(exact / magnitude, exact / (ratio * median.double())), 0)


def of_tokens(x: Tensor, share: Tensor, median: Tensor, sequence: Tensor, position: Tensor) -> Nearest:
    """The largest magnitude of each token x [..., d]; the others have the shape [...]. float32 and int32."""
    x = x.float()
    dim = torch.where(torch.isfinite(x), x.abs(), -1).argmax(-1)
    there = share > 0
    value = torch.where(there, x.gather(-1, dim[..., None])[..., 0], 0)
    places = (torch.where(there, place, NONE).int() for place in (dim, sequence, position))
    return Nearest(share, value, torch.where(there, median, 0), *places)
