"""Which dimensions are systematic outliers, in each sequence by itself.

A dimension is one where the share of points with an absolute hit and the share of the sequence's positions with one
both reach the criteria (Dettmers et al. 2022, LLM.int8(), arXiv 2208.07339, section 4). Positions are a union over all
points, so with many points they add up: `mean_point_share` says what one point has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.outliers.fold import PartReductions
from tasks.outliers.reductions import FIRST_VALUES
from tasks.outliers.spec import ABSOLUTE, VARIANTS, Criteria


@dataclass(frozen=True, eq=False)
class Shares:
    """Of every dimension in every sequence, under one variant; all [B, d]."""

    layers: Tensor
    """float64: points with an absolute hit / points"""
    positions: Tensor
    """float64: positions with an absolute hit at any point / positions"""
    systematic: Tensor
    """bool"""


def shares(first: PartReductions, rest: PartReductions, lengths: Tensor, criteria: Criteria) -> dict[str, Shares]:
    """By variant. lengths: [B] int64, tokens of each sequence, the first included."""
    at_points = {"without_first": rest.count[:, :, ABSOLUTE] > 0}
    at_points["all"] = at_points["without_first"] | (first.count[:, :, ABSOLUTE] > 0)
    at_positions = {"without_first": (rest.hits & 1).sum(1, dtype=torch.int64)}
    at_positions["all"] = at_positions["without_first"] + (first.hits[:, 0] & 1)
    positions = {"all": lengths, "without_first": (lengths - 1).clamp(min=1)}
    found = {}
    for variant in VARIANTS:
        layers = at_points[variant].sum(1).double() / at_points[variant].shape[1]
        union = at_positions[variant].double() / positions[variant][:, None]
        systematic = (layers >= criteria.layer_share) & (union >= criteria.position_share)
        found[variant] = Shares(layers, union, systematic)
    return found


@dataclass(frozen=True, eq=False)
class Pairs:
    """The P (sequence, dimension) pairs that are systematic under either variant, described under one of them."""

    row: Tensor
    """[P] int64, in the batch"""
    dim: Tensor
    """[P] int64"""
    systematic: dict[str, Tensor]
    """variant -> [P] bool"""
    layer_share: Tensor
    position_share: Tensor
    """[P] float64"""
    occurrences: Tensor
    """[P, S] int64: positions with a hit, by point"""
    negative: Tensor
    """[P] int64"""
    max_magnitude: Tensor
    max_over_rms: Tensor
    max_over_median: Tensor
    """[P] float32"""
    first_values: Tensor
    """[P, FIRST_VALUES] float32, by point and position; the first `filled` of them"""
    filled: Tensor
    """[P] int64"""


def pairs(first: PartReductions, rest: PartReductions, found: dict[str, Shares], variant: str) -> Pairs:
    """What `shares` found, with the numbers of `variant`."""
    row, dim = torch.stack([found[name].systematic for name in VARIANTS]).any(0).nonzero(as_tuple=True)
    parts = (first, rest) if variant == "all" else (rest,)
    one = found[variant]
    values, filled = _first_values(parts, row, dim)
    return Pairs(
        row=row,
        dim=dim,
        systematic={name: found[name].systematic[row, dim] for name in VARIANTS},
        layer_share=one.layers[row, dim],
        position_share=one.positions[row, dim],
        occurrences=sum(part.count[row, :, ABSOLUTE, dim].long() for part in parts),
        negative=sum(part.negative[row, dim].long() for part in parts),
        max_magnitude=_largest([part.peak[row, :, dim].abs().amax(1) for part in parts]),
        max_over_rms=_largest([part.over_rms[row, dim] for part in parts]),
        max_over_median=_largest([part.over_median[row, dim] for part in parts]),
        first_values=values,
        filled=filled,
    )


def _largest(values: list[Tensor]) -> Tensor:
    return torch.stack(values).amax(0)


def _first_values(parts: tuple[PartReductions, ...], row: Tensor, dim: Tensor) -> tuple[Tensor, Tensor]:
    """The first hits over all parts, by point and position: [P, FIRST_VALUES], and how many they are."""
    value, point, position, filled = (
        [getattr(part, name)[row, ..., dim] for part in parts]
        for name in ("first_values", "first_points", "first_positions", "filled")
    )
    places = torch.arange(FIRST_VALUES, device=row.device)
    there = torch.cat([places < n[:, None] for n in filled], dim=1)
    place = torch.cat(point, dim=1).long() << 32 | torch.cat(position, dim=1)
    order = torch.where(there, place, torch.iinfo(torch.int64).max).sort(dim=1).indices[:, :FIRST_VALUES]
    return torch.cat(value, dim=1).gather(1, order), there.sum(1).clamp(max=FIRST_VALUES)
