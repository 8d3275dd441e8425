"""The reference: a list of every single occurrence, and every number computed from it, one Python object at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from tasks.outliers.spec import CRITERIA, Criteria


class Occurrence(NamedTuple):
    dim: int
    point: int
    sequence: int
    position: int
    value: float
    over_rms: float
    over_median: float
    median: float
    criteria: tuple[bool, bool, bool]


def occurrences(x: np.ndarray, sequence: int, criteria: Criteria) -> list[Occurrence]:
    """All hits in x [point, position, d] float32, the activations of one sequence, in order of point and position."""
    found = []
    for point in range(x.shape[0]):
        for position in range(x.shape[1]):
            vector = [float(v) for v in x[point, position]]
            known = all(map(math.isfinite, vector))
            rms = float(np.sqrt(np.mean(np.square(x[point, position].astype(np.float64))))) if known else math.nan
            median = sorted(map(abs, vector))[(len(vector) - 1) // 2] if known else math.nan
            asked = any(abs(v) >= criteria.threshold or abs(v) > criteria.massive_magnitude for v in vector)
            for dim, value in enumerate(vector):
                size = abs(value)
                hits = (
                    size >= criteria.threshold,
                    size >= criteria.relative_threshold * rms and size > 0,
                    size > criteria.massive_magnitude and size >= criteria.massive_ratio * median,
                )
                if math.isfinite(value) and any(hits):
                    over_rms = size / rms if rms > 0 else 0.0
                    over_median = size / median if median > 0 and asked else 0.0
                    found.append(Occurrence(dim, point, sequence, position, value, over_rms, over_median, median, hits))
    return found


def peaks(sequences: list[np.ndarray], positions: slice) -> np.ndarray:
    """[d, S]: largest finite magnitude of each dimension at each point, over these positions of x [S, T, d]."""
    points, _, d = sequences[0].shape
    largest = np.zeros((d, points), np.float32)
    for x in sequences:
        for point in range(points):
            for vector in x[point, positions]:
                for dim, value in enumerate(vector):
                    if math.isfinite(value):
                        largest[dim, point] = max(largest[dim, point], abs(value))
    return largest


def nearest(sequences: dict[int, np.ndarray], positions: slice, criteria: Criteria) -> list[tuple | None]:
    """By point, what comes nearest to a massive activation in x [S, T, d] by sequence: share of the two limits that it
    reaches, value, median of its token, dimension, sequence, position; the first of equal ones."""
    best: list[tuple | None] = [None] * len(next(iter(sequences.values())))
    for number, x in sorted(sequences.items()):
        for point in range(len(best)):
            for position in range(x.shape[1])[positions]:
                vector = [float(v) for v in x[point, position]]
                if not all(map(math.isfinite, vector)):
                    continue
                median = sorted(map(abs, vector))[(len(vector) - 1) // 2]
                size = max(map(abs, vector))
                if size < criteria.threshold and size <= criteria.massive_magnitude:
                    continue
                over_median = size / (criteria.massive_ratio * median) if median else math.inf
                share = min(size / criteria.massive_magnitude, over_median)
                if best[point] is None or share > best[point][0]:
                    dim = next(i for i, v in enumerate(vector) if abs(v) == size)
                    best[point] = share, vector[dim], median, dim, number, position
    return best


def summary(found: list[Occurrence], points: int, examples: int = 5) -> dict[int, dict]:
    """dim -> everything that a state knows of it."""
    by_dim = defaultdict(list)
    for one in found:
        by_dim[one.dim].append(one)
    return {dim: _of_dim(hits, points, examples) for dim, hits in sorted(by_dim.items())}


def _of_dim(hits: list[Occurrence], points: int, examples: int) -> dict:
    count = np.zeros((len(CRITERIA), points), np.int64)
    positions = [set(), set(), set()]
    for hit in hits:
        for c in range(len(CRITERIA)):
            if hit.criteria[c]:
                count[c, hit.point] += 1
                positions[c].add(hit.position)
    outliers = [hit for hit in hits if hit.criteria[0]]
    massive_peak = np.zeros(points, np.float32)
    for hit in hits:
        if hit.criteria[2]:
            massive_peak[hit.point] = max(massive_peak[hit.point], abs(hit.value))
    strongest = {}
    for hit in outliers:
        cell = hit.sequence, hit.point, hit.position == 0
        if cell not in strongest or abs(hit.value) > abs(strongest[cell].value):
            strongest[cell] = hit
    largest = sorted(strongest.values(), key=lambda h: (-abs(h.value), h.sequence, h.point, h.position))
    first = sorted(outliers, key=lambda h: (h.point, h.sequence, h.position))
    return {
        "count": count,
        "positions": positions,
        "negative": sum(hit.value < 0 for hit in outliers),
        "massive_peak": massive_peak,
        "over_rms": max(hit.over_rms for hit in hits),
        "over_median": max(hit.over_median for hit in hits),
        "largest": [(h.value, h.point, h.sequence, h.position) for h in largest[:examples]],
        "first": [(h.value, h.point, h.sequence, h.position) for h in first[:examples]],
    }
