"""The reductions of one point on the CPU: loops that numba compiles, two passes over the activations.

Values are compared as the bits of their float32 magnitudes, which are ordered as the magnitudes are; so bfloat16 needs
no copy in float32, and NaN and infinity are the integers from `INFINITY` on. Every inner loop runs along a token's
vector and branches on nothing, which is what lets the compiler do sixteen dimensions at a time.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from tasks.models.cache import cache_root

os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_root() / "numba"))  # read when numba is imported

import numba
from numba import njit, prange

from tasks.outliers.reductions import FIRST_VALUES, PointOutputs, Thresholds

INFINITY = np.int32(0x7F800000)
MAGNITUDE = np.int32(0x7FFFFFFF)
BLOCK = 64
"""Dimensions that one task of the second pass takes: two cache lines of bfloat16, and its counters fit the L1 cache."""
TOKENS = 16
"""Tokens that one task of the first pass takes."""
FIELDS = 8
"""Counters of a dimension in the second pass: hits by each of three criteria, negative ones, magnitude and position of
the largest, largest ratios to the token's rms and median."""


def reduce_point(x: Tensor, start: Tensor, length: Tensor, thresholds: Thresholds, out: PointOutputs) -> None:
    """See `reductions.reduce_point`; x on the CPU."""
    bits, shift = _as_bits(x)
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    starts, lengths = start.numpy(), length.numpy()
    relative = np.empty(x.shape[:2], np.int32)
    massive = np.empty(x.shape[:2], np.int32)
    _tokens(
        bits,
        shift,
        starts,
        lengths,
        thresholds.absolute_bits,
        thresholds.relative,
        thresholds.massive_bits,
        thresholds.massive_ratio,
        relative,
        massive,
        *(t.numpy() for t in (out.rms, out.median, out.token_hits, out.nan, out.inf)),
    )
    _dimensions(
        bits,
        shift,
        starts,
        lengths,
        thresholds.absolute_bits,
        relative,
        massive,
        out.point,
        *(
            t.numpy()
            for t in (
                out.rms,
                out.median,
                out.count,
                out.negative,
                out.peak,
                out.peak_at,
                out.over_rms,
                out.over_median,
                out.hits,
                out.first_values,
                out.first_points,
                out.first_positions,
                out.filled,
            )
        ),
    )


def _as_bits(x: Tensor) -> tuple[np.ndarray, np.int32]:
    """Integers of x [batch, position, d], and how far to shift them left for the bits of the float32 value."""
    x = x.contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy(), np.int32(16)
    return x.float().view(torch.int32).numpy(), np.int32(0)


@njit(inline="always")
def _value_bits(raw, shift):
    return np.int32(np.int32(raw) << shift)


@njit(inline="always")
def _magnitude(raw, shift):
    return np.int32(_value_bits(raw, shift) & MAGNITUDE)


@njit(inline="always")
def _as_float(bits):
    return np.int32(bits).view(np.float32)


@njit(inline="always")
def _not_less(limit):
    """Bits of the smallest float32 that is not less than `limit` >= 0 (float64)."""
    rounded = np.float32(limit)
    bits = rounded.view(np.int32)
    return np.int32(bits + 1) if np.float64(rounded) < limit else bits


@njit(inline="always")
def _count_up_to(magnitudes, limit):
    """How many of a token's magnitudes are at most `limit`."""
    n = np.int32(0)
    for h in range(magnitudes.size):
        n = np.int32(n + np.int32(magnitudes[h] <= limit))
    return n


@njit(inline="always")
def _median(magnitudes, shift, rms):
    """The lower median of a token's magnitudes: the smallest that at least half of them do not exceed.

    It is at most sqrt(2) rms, since the upper half alone has that much power. From there, octaves are left out as long
    as half of the magnitudes are below; in the octave that is left, the search halves the interval.
    """
    half = np.int32((magnitudes.size + 1) // 2)
    step = np.int32(1 << shift)
    octave = np.int32(1 << 23)
    high = np.int32(_not_less(1.415 * rms) | np.int32(step - 1))
    low = np.int32(high - octave)
    while low >= 0 and _count_up_to(magnitudes, low) >= half:
        high = low
        low = np.int32(low - octave)
    low = max(low, np.int32(-1))
    while high - low > step:
        middle = np.int32(low + np.int32((high - low) // (2 * step)) * step)
        if _count_up_to(magnitudes, middle) >= half:
            high = middle
        else:
            low = middle
    return np.int32(high & ~np.int32(step - 1))


@njit(nogil=True, parallel=True, cache=True, fastmath={"reassoc"})
def _tokens(
    x, shift, start, length, absolute, ratio, massive_limit, massive_ratio,
    relative, massive, rms, median, token_hits, nan, inf,
):  # fmt: skip
    """Of each token: root mean square, median, hits; from these its thresholds of the other two criteria."""
    batch, width, d = x.shape
    parts = (width + TOKENS - 1) // TOKENS
    for k in prange(batch * parts):
        b, t0 = k // parts, (k % parts) * TOKENS
        magnitudes = np.empty(d, np.int32)
        for t in range(t0, min(t0 + TOKENS, length[b])):
            row = x[b, start[b] + t]
            top, hits, power = np.int32(0), np.int32(0), 0.0
            for h in range(d):
                magnitude = _magnitude(row[h], shift)
                magnitudes[h] = magnitude
                top = max(top, magnitude)
                hits = np.int32(hits + np.int32(magnitude >= absolute))
            if top >= INFINITY:
                for h in range(d):
                    nan[b, t] += magnitudes[h] > INFINITY
                    inf[b, t] += magnitudes[h] == INFINITY
                token_hits[b, t] = hits - nan[b, t] - inf[b, t]
                rms[b, t] = median[b, t] = np.nan
                relative[b, t] = massive[b, t] = INFINITY
                continue
            for h in range(d):
                value = np.float64(_as_float(magnitudes[h]))
                power += value * value
            size = np.sqrt(power / d)
            middle = _as_float(_median(magnitudes, shift, size))
            rms[b, t] = size
            median[b, t] = middle
            token_hits[b, t] = hits
            relative[b, t] = max(_not_less(ratio * size), np.int32(1))
            massive[b, t] = max(_not_less(massive_ratio * middle), massive_limit)


@njit(nogil=True, parallel=True, cache=True)
def _dimensions(
    x, shift, start, length, absolute, relative, massive, point,
    rms, median, count, negative, peak, peak_at, over_rms, over_median, hits,
    first_values, first_points, first_positions, filled,
):  # fmt: skip
    """Of each dimension, over the positions of a sequence but the first: hits and what they are like."""
    batch, _, d = x.shape
    blocks = (d + BLOCK - 1) // BLOCK
    for k in prange(batch * blocks):
        b, h0 = k // blocks, (k % blocks) * BLOCK
        w = min(BLOCK, d - h0)
        acc = np.zeros(FIELDS * BLOCK, np.int32)
        for t in range(1, length[b]):
            row = x[b, start[b] + t, h0 : h0 + w]
            of_rms, of_median = relative[b, t], massive[b, t]
            lowest = min(absolute, min(of_rms, of_median))
            top = np.int32(0)
            for h in range(w):
                top = max(top, _magnitude(row[h], shift))
            if top < lowest:
                continue
            by_rms = np.float32(1.0 / rms[b, t]) if rms[b, t] > 0 else np.float32(0)
            by_median = np.float32(1.0 / median[b, t]) if median[b, t] > 0 else np.float32(0)
            for h in range(w):
                bits = _value_bits(row[h], shift)
                magnitude = np.int32(bits & MAGNITUDE)
                finite = np.int32(magnitude < INFINITY)
                hit = np.int32(np.int32(magnitude >= absolute) & finite)
                some = np.int32(np.int32(magnitude >= lowest) & finite)
                acc[h] += hit
                acc[BLOCK + h] += np.int32(np.int32(magnitude >= of_rms) & finite)
                acc[2 * BLOCK + h] += np.int32(np.int32(magnitude >= of_median) & finite)
                acc[3 * BLOCK + h] += np.int32(hit & np.int32(bits < 0))
                shown = np.int32(magnitude * hit)
                larger = shown > acc[4 * BLOCK + h]
                acc[4 * BLOCK + h] = shown if larger else acc[4 * BLOCK + h]
                acc[5 * BLOCK + h] = np.int32(t) if larger else acc[5 * BLOCK + h]
                value = _as_float(np.int32(magnitude * some))
                acc[6 * BLOCK + h] = max(acc[6 * BLOCK + h], np.float32(value * by_rms).view(np.int32))
                acc[7 * BLOCK + h] = max(acc[7 * BLOCK + h], np.float32(value * by_median).view(np.int32))
            marks = hits[b, t, h0 : h0 + w]
            for h in range(w):
                magnitude = _magnitude(row[h], shift)
                mark = np.int32(magnitude >= absolute)
                mark = np.int32(mark | np.int32(np.int32(magnitude >= of_rms) << 1))
                mark = np.int32(mark | np.int32(np.int32(magnitude >= of_median) << 2))
                marks[h] |= np.uint8(mark * np.int32(magnitude < INFINITY))
        for h in range(w):
            for criterion in range(3):
                count[b, criterion, h0 + h] = acc[criterion * BLOCK + h]
            negative[b, h0 + h] += acc[3 * BLOCK + h]
            if acc[4 * BLOCK + h] > 0:
                at = acc[5 * BLOCK + h]
                peak[b, h0 + h] = _as_float(_value_bits(x[b, start[b] + at, h0 + h], shift))
                peak_at[b, h0 + h] = at
            over_rms[b, h0 + h] = max(over_rms[b, h0 + h], _as_float(acc[6 * BLOCK + h]))
            over_median[b, h0 + h] = max(over_median[b, h0 + h], _as_float(acc[7 * BLOCK + h]))
            t = 1
            while acc[h] > 0 and filled[b, h0 + h] < FIRST_VALUES and t < length[b]:
                bits = _value_bits(x[b, start[b] + t, h0 + h], shift)
                magnitude = np.int32(bits & MAGNITUDE)
                if absolute <= magnitude < INFINITY:
                    slot = filled[b, h0 + h]
                    first_values[b, slot, h0 + h] = _as_float(bits)
                    first_points[b, slot, h0 + h] = point
                    first_positions[b, slot, h0 + h] = t
                    filled[b, h0 + h] = slot + 1
                t += 1
