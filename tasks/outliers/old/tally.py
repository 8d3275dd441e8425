"""What is kept of a batch's occurrences while they are read: for each dimension sets, counts and a few values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

FIRST_VALUES = 5
"""Occurrences of each dimension that are kept as examples: as the old layout has them."""


@dataclass(frozen=True)
class Shares:
    """Criteria that the old layout does not record."""

    layer: float
    position: float


class Names:
    """Points by number, in the order they are met."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def bits(self, names: Iterable[str]) -> int:
        """A set of points as the bits of a number."""
        bits = 0
        for name in names:
            bits |= 1 << self._numbers.setdefault(name, len(self._numbers))
        return bits

    def of(self, bits: int) -> list[str]:
        """The names of a set."""
        return [name for name, number in self._numbers.items() if bits >> number & 1]

    def in_order(self) -> list[str]:
        """All names, layer_2 before layer_10."""
        return sorted(self._numbers, key=_natural)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


@dataclass(frozen=True, slots=True)
class Found:
    """A systematic dimension of a batch."""

    dim: int
    layer_share: float
    position_share: float
    max_magnitude: float
    occurrences: int
    points: int
    """Bits."""
    first_values: tuple[float, ...]
    negative: int | None = field(default=None, compare=False)
    """Occurrences below zero; the old layout's records do not have this."""


@dataclass(slots=True)
class DimTally:
    """The occurrences of one dimension."""

    count: int
    negative: int
    max_magnitude: float
    points: int
    """Bits."""
    positions: int
    """Bits."""
    first_values: tuple[float, ...]

    def add(self, other: DimTally) -> None:
        """Of a further batch."""
        self.count += other.count
        self.negative += other.negative
        self.max_magnitude = max(self.max_magnitude, other.max_magnitude)
        self.points |= other.points
        self.positions |= other.positions

    def found(self, dim: int, points: int, positions: int) -> Found:
        """points, positions: denominators of the shares."""
        return Found(
            dim=dim,
            layer_share=self.points.bit_count() / points,
            position_share=self.positions.bit_count() / positions,
            max_magnitude=self.max_magnitude,
            occurrences=self.count,
            points=self.points,
            first_values=self.first_values,
            negative=self.negative,
        )


def tally(values: list[float], count: int, negative: int, largest: float, points: int, positions: set[int]) -> DimTally:
    """Of one dimension. values: the first ones, of which `FIRST_VALUES` are kept."""
    hit = np.zeros(max(positions) + 1, np.uint8)
    hit[np.fromiter(positions, np.int64, len(positions))] = 1
    bits = int.from_bytes(np.packbits(hit, bitorder="little").tobytes(), "little")
    return DimTally(count, negative, largest, points, bits, tuple(values[:FIRST_VALUES]))


@dataclass
class BatchTally:
    """The occurrences of a batch."""

    dims: dict[int, DimTally] = field(default_factory=dict)
    """In order of their first occurrence."""
    smallest: float = float("inf")
    """Magnitude"""
    nan: int = 0
    """Occurrences whose value is NaN: they are none, and are counted nowhere else."""

    @property
    def occurrences(self) -> int:
        return sum(tally.count for tally in self.dims.values())

    @property
    def points(self) -> int:
        """Bits."""
        bits = 0
        for tally in self.dims.values():
            bits |= tally.points
        return bits

    @property
    def width(self) -> int:
        """One more than the last position with an occurrence."""
        return max((tally.positions.bit_length() for tally in self.dims.values()), default=0)

    def systematic(self, points: int, positions: int, shares: Shares) -> list[Found]:
        """Dimensions that reach both shares, largest magnitude first, then in order of their first occurrence."""
        found = (tally.found(dim, points, positions) for dim, tally in self.dims.items())
        kept = [f for f in found if f.layer_share >= shares.layer and f.position_share >= shares.position]
        return sorted(kept, key=lambda f: -f.max_magnitude)


@dataclass
class Pool:
    """All batches that were read, taken as one."""

    dims: dict[int, DimTally] = field(default_factory=dict)
    batches: int = 0
    points: int = 0
    """Watched in any batch, bits."""
    positions: int = 0
    """Of the longest batch."""
    tokens: int = 0
    """Sequences times positions, over all batches."""

    def add(self, batch: BatchTally, points: int, sequences: int, positions: int) -> None:
        self.batches += 1
        self.points |= points
        self.positions = max(self.positions, positions)
        self.tokens += sequences * positions
        for dim, of_batch in batch.dims.items():
            if dim in self.dims:
                self.dims[dim].add(of_batch)
            else:
                self.dims[dim] = of_batch
