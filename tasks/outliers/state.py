"""The summary of any number of sequences, exact and mergeable: what every reported number is computed from.

A `PartState` holds sets (as bits), counts, maxima and a few examples chosen by a total order. Merging is OR, +, max and
"the first k", so it gives the same bits in any order and any grouping; and its size follows from the model and the
sequences' length alone. Of dimensions without any hit the largest magnitude alone is kept, so two states of the same
sequences are equal arrays.

`merge` puts states together. A site's state has two parts that share nothing: the first position of each sequence, and
the rest. Together they are the result over all positions, the rest alone is the result without the first one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tasks.outliers.examples import Examples
from tasks.outliers.nearest import Nearest
from tasks.outliers.spec import CRITERIA

Arrays = Mapping[str, np.ndarray]


def joined(parts: Mapping[str, Arrays]) -> dict[str, np.ndarray]:
    """Named arrays of several parts in one mapping: "part.name"."""
    return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}


def part_of(arrays: Arrays, part: str) -> dict[str, np.ndarray]:
    """What `joined` was given for one part."""
    start = f"{part}."
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


@dataclass(eq=False)
class PartState:
    """Hits of m dimensions (those with any) at S points over some positions of some sequences."""

    d: int
    """Width of the residual stream."""
    tokens: int
    """Positions that were looked at."""
    width: int
    """One more than the last position that was looked at."""
    dims: np.ndarray
    """[m] int32, ascending"""
    count: np.ndarray
    """[m, 3, S] int64: (sequence, position) pairs with a hit, by criterion"""
    negative: np.ndarray
    """[m] int64: absolute hits with a negative value"""
    peak: np.ndarray
    """[d, S] float32: largest finite magnitude of every dimension, with a hit or without; 0 where there is none"""
    massive_peak: np.ndarray
    """[m, S] float32: largest magnitude of a massive hit, 0 where there is none"""
    over_rms: np.ndarray
    """[m] float32: largest |x| / rms of its token among all hits"""
    over_median: np.ndarray
    """[m] float32: largest |x| / median magnitude of its token, among hits in tokens with an absolute or massive one"""
    positions: np.ndarray
    """[m, 3, ceil(width / 8)] uint8: positions with a hit, by criterion, as np.packbits"""
    largest: Examples
    """The largest absolute hits, at most one of each (sequence, point), and one of its first position."""
    first: Examples
    """The first absolute hits by point, sequence, position."""
    nearest: Nearest
    """[S]: what comes nearest to a massive activation"""

    @classmethod
    def without_hits(cls, d: int, points: int, k: int, dims: np.ndarray, tokens: int = 0, width: int = 0) -> PartState:
        """k: examples to keep of each dimension."""
        m, c = len(dims), len(CRITERIA)
        return cls(
            d=d,
            tokens=tokens,
            width=width,
            dims=dims,
            count=np.zeros((m, c, points), np.int64),
            negative=np.zeros(m, np.int64),
            peak=np.zeros((d, points), np.float32),
            massive_peak=np.zeros((m, points), np.float32),
            over_rms=np.zeros(m, np.float32),
            over_median=np.zeros(m, np.float32),
            positions=np.zeros((m, c, -(-width // 8)), np.uint8),
            largest=Examples.none(m, k),
            first=Examples.none(m, k),
            nearest=Nearest.none(points),
        )

    @property
    def points(self) -> int:
        return self.count.shape[2]

    @property
    def k(self) -> int:
        return self.largest.value.shape[1]

    def positions_hit(self) -> np.ndarray:
        """[m, 3] int64: how many positions have a hit."""
        return np.bitwise_count(self.positions).sum(axis=2, dtype=np.int64)

    def of(self, dims: np.ndarray) -> PartState:
        """The state of `dims` alone, ascending; those that it lacks have no hits."""
        found = np.isin(dims, self.dims)
        rows = np.searchsorted(self.dims, dims[found])
        out = self.without_hits(self.d, self.points, self.k, dims.astype(np.int32), self.tokens, self.width)
        for name in _BY_DIM:
            getattr(out, name)[found] = getattr(self, name)[rows]
        for name in ("largest", "first"):
            getattr(out, name).put(found, getattr(self, name).take(rows))
        return replace(out, peak=self.peak.copy(), nearest=self.nearest.map(np.copy))

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` takes."""
        arrays = {name: getattr(self, name) for name in ("dims", "peak", *_BY_DIM)}
        arrays |= joined({kind: vars(getattr(self, kind)) for kind in (*_EXAMPLES, "nearest")})
        size = np.array([self.d, self.tokens, self.width], np.int64)
        return arrays | {"size": size, "positions": self.positions.reshape(-1)}  # files join along the first axis

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> PartState:
        d, tokens, width = map(int, arrays["size"])
        plain = {name: array for name, array in arrays.items() if "." not in name and name != "size"}
        plain["positions"] = plain["positions"].reshape(len(plain["dims"]), len(CRITERIA), -(-width // 8))
        examples = {kind: Examples(**part_of(arrays, kind)) for kind in _EXAMPLES}
        near = Nearest(**part_of(arrays, "nearest"))
        return cls(d=d, tokens=tokens, width=width, **plain, **examples, nearest=near)


_BY_DIM = ("count", "negative", "massive_peak", "over_rms", "over_median", "positions")
_EXAMPLES = ("largest", "first")


@dataclass(eq=False)
class SiteState:
    """The summary of a site."""

    first: PartState
    """The first position of every sequence."""
    rest: PartState
    """All others."""
    sequences: int
    recurrence: np.ndarray
    """[2, d] int64: sequences in which a dimension is systematic by itself, by variant (`VARIANTS`)"""
    nan: np.ndarray
    inf: np.ndarray
    """[S] int64: such values at each point"""

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` takes, for a file of tensors."""
        arrays = joined({part: getattr(self, part).arrays() for part in _PARTS})
        arrays |= {name: getattr(self, name) for name in ("recurrence", "nan", "inf")}
        return arrays | {"sequences": np.array([self.sequences], np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> SiteState:
        return cls(
            **{part: PartState.from_arrays(part_of(arrays, part)) for part in _PARTS},
            sequences=int(arrays["sequences"][0]),
            **{name: arrays[name] for name in ("recurrence", "nan", "inf")},
        )


_PARTS = ("first", "rest")
