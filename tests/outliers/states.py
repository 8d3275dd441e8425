"""States of given activations, by the product's own reductions, and comparing states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tasks.outliers.examples import NONE, Examples
from tasks.outliers.fold import first_of, fold, rest_of
from tasks.outliers.reductions import SiteBuffers, Thresholds
from tasks.outliers.spec import Criteria
from tasks.outliers.state import PartState

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def draw(
    rng: np.random.Generator, points: int, positions: int, d: int, dtype: str = "float32", special: float = 0.02
) -> np.ndarray:
    """Activations [points, positions, d] float32 that `dtype` can hold: outliers, boundary values, NaN and infinity."""
    x = rng.standard_normal((points, positions, d)) * rng.choice([0.5, 1.5, 4.0], (points, 1, 1))
    x[:, :, rng.integers(d, size=3)] *= rng.choice([2, 8, 300], 3)
    some = rng.random(x.shape) < special
    x[some] = rng.choice([6.0, -6.0, 5.9999995, 100.0, 100.25, 0.0, -0.0, 1e-30], some.sum())
    broken = rng.random(x.shape) < special / 40
    x[broken] = rng.choice([np.nan, np.inf, -np.inf], broken.sum())
    x[rng.integers(points), rng.integers(positions)] = 0.0
    with np.errstate(over="ignore"):
        return torch.from_numpy(x).to(DTYPES[dtype]).float().numpy()


def buffers_of(sequences: Sequence[np.ndarray], criteria: Criteria, side: str = "right", dtype: str = "float32"):
    """The reductions of a batch. sequences: [point, position, d] each, of any lengths; pads hold huge values."""
    lengths = [x.shape[1] for x in sequences]
    width, (points, _, d) = max(lengths), sequences[0].shape
    start = [width - n if side == "left" else 0 for n in lengths]
    x = torch.full((points, len(sequences), width, d), 1e4)
    for row, values in enumerate(sequences):
        x[:, row, start[row] : start[row] + lengths[row]] = torch.from_numpy(values)
    buffers = SiteBuffers(
        points, d, torch.tensor(start), torch.tensor(lengths), Thresholds.of(criteria), torch.device("cpu")
    )
    for point in range(points):
        buffers.observe(point, x[point].to(DTYPES[dtype]))
    return buffers


def parts_of(
    sequences: Sequence[np.ndarray], numbers: Sequence[int], criteria: Criteria, **how
) -> dict[str, PartState]:
    """State of a batch: `first` positions, and the `rest`."""
    buffers = buffers_of(sequences, criteria, **how)
    lengths = [x.shape[1] for x in sequences]
    numbers = torch.tensor(numbers)
    return {
        "first": fold(first_of(buffers), numbers, len(lengths), 1),
        "rest": fold(rest_of(buffers), numbers, sum(lengths) - len(lengths), max(lengths)),
    }


def listed(examples: Examples, row: int) -> list[tuple]:
    """The examples of one dimension as tuples."""
    places = zip(
        *(getattr(examples, name)[row].tolist() for name in ("value", "point", "sequence", "position")), strict=True
    )
    return [place for place in places if place[1] != NONE]


def described(state: PartState) -> dict[int, dict]:
    """A state as `naive.summary` describes it."""
    bits = np.unpackbits(state.positions, axis=2)
    return {
        int(dim): {
            "count": state.count[row],
            "positions": [set(np.flatnonzero(bits[row, c]).tolist()) for c in range(3)],
            "negative": int(state.negative[row]),
            "massive_peak": state.massive_peak[row],
            "over_rms": float(state.over_rms[row]),
            "over_median": float(state.over_median[row]),
            "largest": listed(state.largest, row),
            "first": listed(state.first, row),
        }
        for row, dim in enumerate(state.dims)
    }


def nearest_of(state: PartState) -> list[tuple | None]:
    """What comes nearest to a massive activation, as `naive.nearest` says it."""
    near = state.nearest
    rows = zip(
        *(getattr(near, n).tolist() for n in ("share", "value", "median", "dim", "sequence", "position")), strict=True
    )
    return [row if row[0] else None for row in rows]


def assert_same_bits(a: PartState, b: PartState) -> None:
    """Both states are the same arrays."""
    one, other = a.arrays(), b.arrays()
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert one[name].shape == other[name].shape, name
        assert one[name].tobytes() == other[name].tobytes(), name
