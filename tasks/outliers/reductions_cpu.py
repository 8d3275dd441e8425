"""The reductions of one point on the CPU: loops that numba compiles, one pass over the activations.

Values are compared as the bits of their float32 magnitudes, which are ordered as the magnitudes are; so bfloat16 needs
no copy in float32, and NaN and infinity are the integers from `INFINITY` on. Every inner loop runs along a token's
vector and branches on nothing, which is what lets the compiler do sixteen dimensions at a time.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from tasks.places.cache import cache_root

os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_root() / "numba"))  # read when numba is imported

import numba
from numba import njit, prange

from tasks.outliers.reductions import FIRST_VALUES, SiteBuffers

INFINITY = np.int32(0x7F800000)
MAGNITUDE = np.int32(0x7FFFFFFF)
BLOCK = 64
"""Dimensions that are looked at together, or left out together where nothing in them reaches a threshold."""
TOKENS = 16
"""Tokens whose thresholds are found, and whose dimensions are then looked at, while they are in the cache."""
ABSOLUTE, RELATIVE, MASSIVE, NEGATIVE, LARGEST, LARGEST_AT, LARGEST_MASSIVE, OVER_RMS, OVER_MEDIAN = range(9)
FIELDS = 9
"""Counters of a dimension: hits by each criterion, negative ones, magnitude and position of the largest value,
magnitude of the largest massive hit, and the largest ratios to the token's rms and median. Floats are kept as their
bits, which are ordered alike."""


def reduce_point(x: Tensor, point: int, buffers: SiteBuffers) -> None:
    """See `SiteBuffers.observe`; x on the CPU."""
    bits, shift = _as_bits(x)
    thresholds, arrays = buffers.thresholds, buffers.arrays
    _reduce(
        bits,
        shift,
        point,
        _segments(len(bits)),
        thresholds.absolute_bits,
        thresholds.relative,
        thresholds.massive_bits,
        thresholds.massive_ratio,
        arrays.start,
        arrays.length,
        arrays.count,
        arrays.peak,
        arrays.peak_at,
        arrays.massive_peak,
        arrays.negative,
        arrays.over_rms,
        arrays.over_median,
        arrays.hits,
        arrays.first_values,
        arrays.first_points,
        arrays.first_positions,
        arrays.filled,
        arrays.nan,
        arrays.inf,
        arrays.first,
        arrays.rms,
        arrays.median,
        arrays.token_top,
        arrays.token_hits,
        arrays.first_rms,
        arrays.first_median,
    )


def _segments(sequences: int) -> int:
    """Pieces of each sequence, so that every thread has one: as many threads as torch has, which waits meanwhile."""
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    return -(-threads // sequences)


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
def _median(magnitudes, shift, guess):
    """The lower median of a token's magnitudes: the smallest that at least half of them do not exceed.

    Tokens at one point are alike, so the search begins at the median of the token before (`guess`), in steps that
    double until the median is passed, and then halves the interval.
    """
    half = np.int32((magnitudes.size + 1) // 2)
    unit = np.int32(1 << shift)
    low = high = np.int32(guess | np.int32(unit - 1))  # what the shift leaves out never decides a comparison
    step = np.int32(1 << 18)  # a thirty-second of an octave
    if _count_up_to(magnitudes, high) >= half:
        low = max(np.int32(high - step), np.int32(-1))
        while low >= 0 and _count_up_to(magnitudes, low) >= half:
            high, step = low, np.int32(step << 1)
            low = max(np.int32(high - step), np.int32(-1))
    else:
        high = min(low, np.int32(INFINITY - step)) + step
        while _count_up_to(magnitudes, high) < half:
            low, step = high, np.int32(step << 1)
            high = min(low, np.int32(INFINITY - step)) + step
    while high - low > unit:
        middle = np.int32(low + np.int32((high - low) // (2 * unit)) * unit)
        if _count_up_to(magnitudes, middle) >= half:
            high = middle
        else:
            low = middle
    return np.int32(high & ~np.int32(unit - 1))


@njit(inline="always")
def _take_magnitudes(row, shift, magnitudes):
    """Write the magnitudes of a block of a token's vector, and return the largest."""
    top = np.int32(0)
    for h in range(row.size):
        magnitude = _magnitude(row[h], shift)
        magnitudes[h] = magnitude
        top = max(top, magnitude)
    return top


@njit(inline="always")
def _raise(magnitudes, t, counters):
    """Keep the largest finite magnitude of each dimension of a block, and its first position."""
    for h in range(magnitudes.size):
        shown = np.int32(magnitudes[h] * np.int32(magnitudes[h] < INFINITY))
        larger = shown > counters[LARGEST * BLOCK + h]
        counters[LARGEST * BLOCK + h] = shown if larger else counters[LARGEST * BLOCK + h]
        counters[LARGEST_AT * BLOCK + h] = np.int32(t) if larger else counters[LARGEST_AT * BLOCK + h]


@njit(inline="always")
def _reciprocal(scale):
    """0 where the scale is 0 or unknown."""
    return np.float32(1.0 / scale) if scale > 0 else np.float32(0)


@njit(nogil=True, parallel=True, cache=True, fastmath={"reassoc"})
def _reduce(
    x, shift, point, segments, absolute, ratio, massive_limit, massive_ratio, start, length,
    count, peak, peak_at, massive_peak, negative, over_rms, over_median, hits,
    first_values, first_points, first_positions, filled, nan, inf, first, rms, median, token_top, token_hits,
    first_rms, first_median,
):  # fmt: skip
    batch, _, d = x.shape
    blocks = (d + BLOCK - 1) // BLOCK
    counters = np.empty((batch * segments, blocks, FIELDS * BLOCK), np.int32)
    broken = np.empty((batch * segments, 2), np.int32)
    for task in prange(batch * segments):
        b, segment = task // segments, task % segments
        begin, end = length[b] * segment // segments, length[b] * (segment + 1) // segments
        _count(
            x[b, start[b] : start[b] + length[b]], shift, begin, end, absolute, ratio, massive_limit, massive_ratio,
            counters[task], broken[task], rms[b], median[b], token_top[b], token_hits[b], hits[b],
        )  # fmt: skip
    for b in prange(batch):
        first_rms[b, point], first_median[b, point] = rms[b, 0], median[b, 0]
        nan[b, point], inf[b, point] = 0, 0
        for h in range(d):
            first[b, point, h] = _as_float(_value_bits(x[b, start[b], h], shift))
            peak[b, point, h], peak_at[b, point, h], massive_peak[b, point, h] = 0, 0, 0
        for segment in range(segments):
            mine, is_first = counters[b * segments + segment], segment == 0
            nan[b, point] += broken[b * segments + segment, 0]
            inf[b, point] += broken[b * segments + segment, 1]
            for h in range(d):
                of_dim = mine[h // BLOCK, h % BLOCK :: BLOCK]
                for criterion in range(3):
                    before = 0 if is_first else count[b, point, criterion, h]
                    count[b, point, criterion, h] = before + of_dim[criterion]
                negative[b, h] += of_dim[NEGATIVE]
                value = _as_float(of_dim[LARGEST])
                if value > abs(peak[b, point, h]):
                    at = of_dim[LARGEST_AT]
                    peak[b, point, h] = _as_float(_value_bits(x[b, start[b] + at, h], shift))
                    peak_at[b, point, h] = at
                massive_peak[b, point, h] = max(massive_peak[b, point, h], _as_float(of_dim[LARGEST_MASSIVE]))
                over_rms[b, h] = max(over_rms[b, h], _as_float(of_dim[OVER_RMS]))
                over_median[b, h] = max(over_median[b, h], _as_float(of_dim[OVER_MEDIAN]))
        for h in range(d):
            t = 1
            while count[b, point, ABSOLUTE, h] > 0 and filled[b, h] < FIRST_VALUES and t < length[b]:
                bits = _value_bits(x[b, start[b] + t, h], shift)
                if absolute <= np.int32(bits & MAGNITUDE) < INFINITY:
                    slot = filled[b, h]
                    first_values[b, slot, h] = _as_float(bits)
                    first_points[b, slot, h] = point
                    first_positions[b, slot, h] = t
                    filled[b, h] = slot + 1
                t += 1


@njit(fastmath={"reassoc"})
def _count(
    x, shift, begin, end, absolute, ratio, massive_limit, massive_ratio, counters, broken,
    rms, median, token_top, token_hits, hits,
):  # fmt: skip
    """Positions `begin` to `end` of one sequence x [T, d]: facts of its tokens, counters of its dimensions, in which
    position 0 is left out; how many values are NaN, and infinite."""
    d = x.shape[1]
    blocks = len(counters)
    own = np.zeros(blocks * FIELDS * BLOCK, np.int32)  # memory that the compiler knows nothing else points to
    magnitudes = np.empty(d, np.int32)
    tops = np.empty((TOKENS, blocks), np.int32)
    of_rms, of_median = np.empty(TOKENS, np.int32), np.empty(TOKENS, np.int32)
    by_rms, by_median = np.empty(TOKENS, np.float32), np.empty(TOKENS, np.float32)
    nan, inf = 0, 0
    guess = np.int32(0x3F800000)
    for t0 in range(begin, end, TOKENS):
        n = min(TOKENS, end - t0)
        for i in range(n):
            t = t0 + i
            row = x[t]
            top = np.int32(0)
            for block in range(blocks):
                within = slice(block * BLOCK, (block + 1) * BLOCK)
                tops[i, block] = _take_magnitudes(row[within], shift, magnitudes[within])
                top = max(top, tops[i, block])
                if t > 0:
                    _raise(magnitudes[within], t, own[block * FIELDS * BLOCK : (block + 1) * FIELDS * BLOCK])
            token_hits[t] = d - _count_up_to(magnitudes, np.int32(absolute - 1)) if top >= absolute else 0
            if top >= INFINITY:
                finite = _count_up_to(magnitudes, np.int32(INFINITY - 1))
                not_nan = _count_up_to(magnitudes, INFINITY)
                nan += d - not_nan
                inf += not_nan - finite
                token_hits[t] -= d - finite
                rms[t] = median[t] = token_top[t] = np.nan
                of_rms[i] = of_median[i] = INFINITY
                by_rms[i] = by_median[i] = 0
                continue
            token_top[t] = _as_float(top)
            power = 0.0
            for h in range(d):
                value = np.float64(_as_float(magnitudes[h]))
                power += value * value
            size = np.sqrt(power / d)
            rms[t], by_rms[i] = size, _reciprocal(size)
            of_rms[i] = max(_not_less(ratio * size), np.int32(1))
            median[t], by_median[i], of_median[i] = 0, 0, INFINITY
            if top >= min(absolute, massive_limit):
                guess = _median(magnitudes, shift, guess)
                middle = _as_float(guess)
                median[t], by_median[i] = middle, _reciprocal(middle)
                of_median[i] = max(_not_less(massive_ratio * middle), massive_limit)
        for block in range(blocks):
            h0 = block * BLOCK
            mine = own[block * FIELDS * BLOCK : (block + 1) * FIELDS * BLOCK]
            for i in range(max(0, 1 - t0), n):
                if tops[i, block] >= min(absolute, min(of_rms[i], of_median[i])):
                    row = x[t0 + i, h0 : h0 + BLOCK]
                    _add(row, shift, absolute, of_rms[i], of_median[i], by_rms[i], by_median[i], mine)
                    _mark(row, shift, absolute, of_rms[i], of_median[i], hits[t0 + i, h0 : h0 + BLOCK])
    counters[:] = own.reshape(blocks, FIELDS * BLOCK)
    broken[0], broken[1] = nan, inf


@njit(inline="always")
def _add(row, shift, absolute, of_rms, of_median, by_rms, by_median, counters):
    """Count the dimensions of one token's block; field f of dimension h is at f * BLOCK + h."""
    lowest = min(absolute, min(of_rms, of_median))
    for h in range(row.size):
        bits = _value_bits(row[h], shift)
        magnitude = np.int32(bits & MAGNITUDE)
        finite = np.int32(magnitude < INFINITY)
        hit = np.int32(np.int32(magnitude >= absolute) & finite)
        counters[ABSOLUTE * BLOCK + h] += hit
        counters[RELATIVE * BLOCK + h] += np.int32(np.int32(magnitude >= of_rms) & finite)
        counters[NEGATIVE * BLOCK + h] += np.int32(hit & np.int32(bits < 0))
        massive = np.int32(np.int32(magnitude >= of_median) & finite)
        counters[MASSIVE * BLOCK + h] += massive
        counters[LARGEST_MASSIVE * BLOCK + h] = max(
            counters[LARGEST_MASSIVE * BLOCK + h], np.int32(magnitude * massive)
        )
        value = _as_float(np.int32(magnitude * np.int32(np.int32(magnitude >= lowest) & finite)))
        counters[OVER_RMS * BLOCK + h] = max(counters[OVER_RMS * BLOCK + h], np.float32(value * by_rms).view(np.int32))
        counters[OVER_MEDIAN * BLOCK + h] = max(
            counters[OVER_MEDIAN * BLOCK + h], np.float32(value * by_median).view(np.int32)
        )


@njit(inline="always")
def _mark(row, shift, absolute, of_rms, of_median, marks):
    """Set bit c where criterion c is met."""
    for h in range(row.size):
        magnitude = _magnitude(row[h], shift)
        mark = np.int32(magnitude >= absolute)
        mark = np.int32(mark | np.int32(np.int32(magnitude >= of_rms) << 1))
        mark = np.int32(mark | np.int32(np.int32(magnitude >= of_median) << 2))
        marks[h] |= np.uint8(mark * np.int32(magnitude < INFINITY))
