"""Merging states: OR, +, max and "the first k", so any order and any grouping give the same bits."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tasks.outliers.examples import keep_first, raise_largest
from tasks.outliers.spec import CRITERIA
from tasks.outliers.state import PartState, SiteState


class SiteMerger:
    """One state of all sequences, from one state at a time.

    The states must be of the same site of the same model, with no sequence in two of them.
    """

    def __init__(self) -> None:
        self._first, self._rest = _Total(), _Total()
        self._sequences = 0
        self._sums: dict[str, np.ndarray] = {}

    def add(self, state: SiteState) -> None:
        self._first.add(state.first)
        self._rest.add(state.rest)
        self._sequences += state.sequences
        for name in ("recurrence", "nan", "inf"):
            self._sums[name] = self._sums.get(name, 0) + getattr(state, name)

    def state(self) -> SiteState:
        """Raises ValueError before anything was added."""
        return SiteState(self._first.state(), self._rest.state(), self._sequences, **self._sums)


def merge_sites(states: Iterable[SiteState]) -> SiteState:
    """`SiteMerger` over all of `states`."""
    merger = SiteMerger()
    for state in states:
        merger.add(state)
    return merger.state()


def merge_parts(states: Iterable[PartState]) -> PartState:
    """The same for one part; or for the two parts of a site, whose positions are not the same."""
    total = _Total()
    for state in states:
        total.add(state)
    return total.state()


def over_positions(site: SiteState, variant: str) -> PartState:
    """The hits over `all` positions, or `without_first`."""
    return merge_parts([site.first, site.rest]) if variant == "all" else site.rest


class _Total:
    """A state with room for every dimension, to add others to."""

    def __init__(self) -> None:
        self._sum: PartState | None = None

    def add(self, other: PartState) -> None:
        if self._sum is None:
            every = np.arange(other.d, dtype=np.int32)
            self._sum = PartState.without_hits(other.d, other.points, other.k, every)
        total = self._sum
        if (total.d, total.points, total.k) != (other.d, other.points, other.k):
            raise ValueError("these states are of different models or sites")
        rows = slice(None) if len(other.dims) == total.d else other.dims
        total.tokens += other.tokens
        total.count[rows] += other.count
        total.negative[rows] += other.negative
        np.maximum(total.peak, other.peak, out=total.peak)
        for name in ("massive_peak", "over_rms", "over_median"):
            mine = getattr(total, name)
            mine[rows] = np.maximum(mine[rows], getattr(other, name))
        if other.width > total.width:
            _widen(total, other.width)
        total.positions[rows, :, : other.positions.shape[2]] |= other.positions
        raise_largest(total.largest, rows, other.largest)
        keep_first(total.first, rows, other.first)
        total.nearest.raise_to(other.nearest)

    def state(self) -> PartState:
        if self._sum is None:
            raise ValueError("there is no state to merge")
        return self._sum.of(self._sum.dims[self._sum.count.any(axis=(1, 2))])


def _widen(state: PartState, width: int) -> None:
    positions = np.zeros((len(state.dims), len(CRITERIA), -(-width // 8)), np.uint8)
    positions[:, :, : state.positions.shape[2]] = state.positions
    state.width, state.positions = width, positions
