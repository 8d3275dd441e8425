"""From a batch's reductions to the state of its sequences, on the device where the reductions are."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tasks.outliers.examples import NONE, Examples
from tasks.outliers.nearest import Nearest, of_tokens
from tasks.outliers.reductions import FIRST_VALUES, SiteBuffers
from tasks.outliers.spec import ABSOLUTE
from tasks.outliers.state import PartState

EXAMPLES = 5
"""So many of a dimension's largest outliers are kept."""


@dataclass(frozen=True, eq=False)
class PartReductions:
    """Reductions of B sequences over some of their positions; what the fields mean, `reductions.SiteBuffers` says."""

    count: Tensor
    """[B, S, 3, d] int32"""
    negative: Tensor
    """[B, d] int32"""
    peak: Tensor
    """[B, S, d] float32, signed"""
    peak_at: Tensor
    """[B, S, d] int32"""
    massive_peak: Tensor
    """[B, S, d] float32"""
    over_rms: Tensor
    over_median: Tensor
    """[B, d] float32"""
    hits: Tensor
    """[B, T, d] uint8: bit c is set where criterion c is met at any point"""
    first_values: Tensor
    """[B, FIRST_VALUES, d] float32"""
    first_points: Tensor
    first_positions: Tensor
    """[B, FIRST_VALUES, d] int32"""
    filled: Tensor
    """[B, d] int32"""
    nearest: Nearest
    """[B, S]"""


def rest_of(buffers: SiteBuffers) -> PartReductions:
    """Every position but each sequence's first."""
    plain = {name: getattr(buffers, name) for name in PartReductions.__dataclass_fields__ if name != "nearest"}
    by_point = [torch.stack(values, dim=1) for values in zip(*map(astuple, buffers.nearest), strict=True)]
    return PartReductions(**plain, nearest=Nearest(*by_point))


def first_of(buffers: SiteBuffers) -> PartReductions:
    """Each sequence's first position, from its vectors."""
    x, limits = buffers.first, buffers.thresholds
    magnitude = x.abs()
    finite = torch.isfinite(x)
    rms, median = buffers.first_rms[:, :, None], buffers.first_median[:, :, None]
    exact = magnitude.double()
    absolute = finite & (exact >= limits.absolute)
    relative = finite & (exact >= limits.relative * rms) & (magnitude > 0)
    massive = finite & (exact > limits.massive) & (exact >= limits.massive_ratio * median.double())
    some = torch.where(absolute | relative | massive, magnitude, 0)
    criteria = torch.stack([absolute, relative, massive], dim=2)
    peak = torch.where(finite, x, 0)
    top = torch.where(finite.all(2), magnitude.amax(2), torch.nan)
    share = limits.nearest_share(top, median[..., 0])
    row = torch.arange(len(x), device=x.device)[:, None].expand_as(share)
    marks = sum(criteria[:, :, c].any(1).to(torch.uint8) << c for c in range(criteria.shape[2]))
    points = torch.arange(x.shape[1], device=x.device)[None, :, None]
    rank = absolute.cumsum(1)
    chosen = [absolute & (rank == k + 1) for k in range(FIRST_VALUES)]
    return PartReductions(
        count=criteria.int(),
        negative=(absolute & (x < 0)).sum(1, dtype=torch.int32),
        peak=peak,
        peak_at=torch.zeros_like(peak, dtype=torch.int32),
        massive_peak=torch.where(massive, magnitude, 0),
        over_rms=(some * _reciprocal(rms)).amax(1),
        over_median=(some * _reciprocal(median)).amax(1),
        hits=marks[:, None],
        first_values=torch.stack([torch.where(hit, x, 0).sum(1) for hit in chosen], dim=1),
        first_points=torch.stack([torch.where(hit, points, 0).sum(1, dtype=torch.int32) for hit in chosen], dim=1),
        first_positions=torch.zeros_like(buffers.first_positions),
        filled=rank[:, -1].clamp(max=FIRST_VALUES).int(),
        nearest=of_tokens(x, share, median[..., 0], row, torch.zeros_like(row)),
    )


def _reciprocal(scale: Tensor) -> Tensor:
    """float32; 0 where the scale is 0 or unknown."""
    return torch.where(scale > 0, 1 / scale.double(), 0).float()


def fold(part: PartReductions, sequences: Tensor, tokens: int, width: int) -> PartState:
    """The state of a batch. sequences: [B] int64, their numbers, ascending; tokens, width: as in `PartState`."""
    count = part.count.sum(0, dtype=torch.int32).long()  # [S, 3, d]
    dims = count.any(0).any(0).nonzero()[:, 0]
    marks = part.hits[0].index_select(1, dims)
    for row in part.hits[1:]:
        marks = marks | row.index_select(1, dims)
    bits = torch.stack([marks >> c & 1 for c in range(count.shape[1])])[:, :width]  # [3, T, m]
    return PartState(
        d=count.shape[2],
        tokens=tokens,
        width=width,
        dims=_numpy(dims.int()),
        count=_numpy(count[:, :, dims].permute(2, 1, 0)),
        negative=_numpy(part.negative.sum(0, dtype=torch.int64)[dims]),
        peak=_numpy(part.peak.abs().amax(0).T),
        massive_peak=_numpy(part.massive_peak.amax(0)[:, dims].T),
        over_rms=_numpy(part.over_rms.amax(0)[dims]),
        over_median=_numpy(part.over_median.amax(0)[dims]),
        positions=np.ascontiguousarray(np.packbits(_numpy(bits), axis=1).transpose(2, 0, 1)),
        largest=_largest(part, dims, sequences),
        first=_first(part, dims, sequences),
        nearest=_nearest(part.nearest, sequences),
    )


def _largest(part: PartReductions, dims: Tensor, sequences: Tensor) -> Examples:
    """The largest of every (sequence, point), then the largest of these; equal ones in order of sequence and point."""
    batch, points, _ = part.peak.shape
    value = torch.where(part.count[:, :, ABSOLUTE, dims] > 0, part.peak[:, :, dims], 0)
    value = value.reshape(batch * points, -1).T
    at = part.peak_at[:, :, dims].reshape(batch * points, -1).T
    number = torch.arange(batch * points, device=value.device)
    key = value.abs().contiguous().view(torch.int32).long() << 32 | (batch * points - number)
    top = key.topk(min(EXAMPLES, batch * points), dim=1).indices
    value, at = value.gather(1, top), at.gather(1, top)
    there = value != 0
    return _examples(there, value, top % points, sequences[top // points], at, EXAMPLES)


def _nearest(found: Nearest, sequences: Tensor) -> Nearest:
    """Of every point, over the sequences; of equal ones the first."""
    chosen = found.share.argmax(0, keepdim=True)
    best = found.map(lambda values: values.gather(0, chosen)[0])
    there = best.share > 0
    number = torch.where(there, sequences[torch.where(there, best.sequence, 0)], NONE).int()
    return replace(best, sequence=number).map(_numpy)


def _first(part: PartReductions, dims: Tensor, sequences: Tensor) -> Examples:
    """Of the first ones of each sequence, the first by point, sequence, position."""
    value, point, at = (t[:, :, dims] for t in (part.first_values, part.first_points, part.first_positions))
    batch, kept, m = value.shape
    there = torch.arange(kept, device=value.device)[None, :, None] < part.filled[:, None, dims]
    place = torch.arange(batch * kept, device=value.device).reshape(batch, kept, 1)
    key = torch.where(there, point.long() * batch * kept + place, torch.iinfo(torch.int64).max)
    chosen = key.reshape(batch * kept, m).T.topk(FIRST_VALUES, dim=1, largest=False, sorted=True).indices
    value, point, at, there = (t.reshape(batch * kept, m).T.gather(1, chosen) for t in (value, point, at, there))
    return _examples(there, value, point, sequences[chosen // kept], at, FIRST_VALUES)


def _examples(there: Tensor, value: Tensor, point: Tensor, sequence: Tensor, position: Tensor, k: int) -> Examples:
    filled = Examples.none(len(value), k)
    width = value.shape[1]
    filled.value[:, :width] = _numpy(torch.where(there, value, 0))
    for name, numbers in (("point", point), ("sequence", sequence), ("position", position)):
        getattr(filled, name)[:, :width] = _numpy(torch.where(there, numbers, NONE).int())
    return filled


def _numpy(t: Tensor) -> np.ndarray:
    return np.ascontiguousarray(t.cpu().numpy())
