"""The reductions of one point on the CPU: loops that numba compiles, one pass over the activations.

Values are compared as the bits of their float32 magnitudes, which are ordered as the magnitudes are; so bfloat16 needs
no copy in float32, and NaN and infinity are the integers from `INFINITY` on. Every inner loop runs along a token's
vector and branches on nothing, which is what lets the compiler do sixteen dimensions at a time.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tasks.models.cache import cache_root

os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_root() / "numba"))  # read when numba is imported

from numba import njit

from tasks.outliers.reductions import FIRST_VALUES, PointOutputs, Thresholds

INFINITY = np.int32(0x7F800000)
MAGNITUDE = np.int32(0x7FFFFFFF)
BLOCK = 64
"""Dimensions that are looked at together, or left out together where nothing in them reaches a threshold."""
TOKENS = 16
"""Tokens whose thresholds are found, and whose dimensions are then looked at, while they are in the cache."""
ABSOLUTE, RELATIVE, MASSIVE, NEGATIVE, LARGEST, LARGEST_AT, OVER_RMS, OVER_MEDIAN = range(8)
FIELDS = 8
"""Counters of a dimension: hits by each criterion, negative ones, magnitude and position of the largest, and the
largest ratios to the token's rms and median. Floats are kept as their bits, which are ordered alike."""


def reduce_point(x: Tensor, start: Tensor, length: Tensor, thresholds: Thresholds, out: PointOutputs) -> None:
    """See `reductions.reduce_point`; x on the CPU."""
    bits, shift = _as_bits(x)
    starts, lengths = start.numpy(), length.numpy()
    segments = -(-threads() // len(lengths))
    blocks = -(-x.shape[2] // BLOCK)
    counters = np.zeros((len(lengths), segments, blocks, FIELDS * BLOCK), np.int32)
    of_tokens = _arrays(out, "rms", "median", "token_hits", "nan", "inf", "hits")
    limits = thresholds.absolute_bits, thresholds.relative, thresholds.massive_bits, thresholds.massive_ratio

    def count(share: int) -> None:
        _count(bits, shift, starts, lengths, *limits, share, shares, counters, *of_tokens)

    shares = threads()
    others = [_pool().submit(count, share) for share in range(1, shares)]
    count(0)
    for other in others:
        other.result()
    _collect(
        bits,
        shift,
        starts,
        lengths,
        thresholds.absolute_bits,
        out.point,
        counters,
        *_arrays(out, "count", "negative", "peak", "peak_at", "over_rms", "over_median"),
        *_arrays(out, "first_values", "first_points", "first_positions", "filled"),
    )


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that sleep while they wait: numba's own would turn on the cores that torch computes on."""
    return ThreadPoolExecutor(max_workers=64, thread_name_prefix="reductions")


def _arrays(out: PointOutputs, *names: str) -> list[np.ndarray]:
    return [getattr(out, name).numpy() for name in names]


def threads() -> int:
    """As many as torch uses: the reductions run while it waits."""
    return torch.get_num_threads()


def _arrays(out: PointOutputs, *names: str) -> list[np.ndarray]:
    return [getattr(out, name).numpy() for name in names]


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


@njit(inline="always")
def _largest(magnitudes):
    top = np.int32(0)
    for h in range(magnitudes.size):
        top = max(top, magnitudes[h])
    return top


@njit(inline="always")
def _reciprocal(scale):
    """0 where the scale is 0 or unknown."""
    return np.float32(1.0 / scale) if scale > 0 else np.float32(0)


@njit(nogil=True, cache=True, fastmath={"reassoc"})
def _count(
    x, shift, start, length, absolute, ratio, massive_limit, massive_ratio, share, shares, counters,
    rms, median, token_hits, nan, inf, hits,
):  # fmt: skip
    """Counters of every dimension over each segment of each sequence, its first position left out; facts of tokens."""
    batch, _, d = x.shape
    segments, blocks = counters.shape[1:3]
    for task in range(share, batch * segments, shares):
        b, segment = task // segments, task % segments
        end = length[b] * (segment + 1) // segments
        own = np.zeros(blocks * FIELDS * BLOCK, np.int32)  # memory that the compiler knows nothing else points to
        magnitudes = np.empty(d, np.int32)
        tops = np.empty((TOKENS, blocks), np.int32)
        of_rms, of_median = np.empty(TOKENS, np.int32), np.empty(TOKENS, np.int32)
        by_rms, by_median = np.empty(TOKENS, np.float32), np.empty(TOKENS, np.float32)
        for t0 in range(length[b] * segment // segments, end, TOKENS):
            for i in range(min(TOKENS, end - t0)):
                t = t0 + i
                row = x[b, start[b] + t]
                for h in range(d):
                    magnitudes[h] = _magnitude(row[h], shift)
                top = np.int32(0)
                for block in range(blocks):
                    tops[i, block] = _largest(magnitudes[block * BLOCK : (block + 1) * BLOCK])
                    top = max(top, tops[i, block])
                token_hits[b, t] = nan[b, t] = inf[b, t] = 0
                if top >= INFINITY:
                    for h in range(d):
                        token_hits[b, t] += absolute <= magnitudes[h] < INFINITY
                        nan[b, t] += magnitudes[h] > INFINITY
                        inf[b, t] += magnitudes[h] == INFINITY
                    rms[b, t] = median[b, t] = np.nan
                    of_rms[i] = of_median[i] = INFINITY
                    by_rms[i] = by_median[i] = 0
                    continue
                power = 0.0
                for h in range(d):
                    value = np.float64(_as_float(magnitudes[h]))
                    power += value * value
                size = np.sqrt(power / d)
                middle = _as_float(_median(magnitudes, shift, size))
                rms[b, t], median[b, t] = size, middle
                if top >= absolute:
                    token_hits[b, t] = d - _count_up_to(magnitudes, np.int32(absolute - 1))
                of_rms[i] = max(_not_less(ratio * size), np.int32(1))
                of_median[i] = max(_not_less(massive_ratio * middle), massive_limit)
                by_rms[i], by_median[i] = _reciprocal(size), _reciprocal(middle)
            for block in range(blocks):
                h0 = block * BLOCK
                width = min(BLOCK, d - h0)
                mine = own[block * FIELDS * BLOCK : (block + 1) * FIELDS * BLOCK]
                for i in range(max(0, 1 - t0), min(TOKENS, end - t0)):
                    if tops[i, block] >= min(absolute, min(of_rms[i], of_median[i])):
                        t = t0 + i
                        row = x[b, start[b] + t, h0 : h0 + width]
                        _add(row, shift, absolute, of_rms[i], of_median[i], by_rms[i], by_median[i], t, mine)
                        _mark(row, shift, absolute, of_rms[i], of_median[i], hits[b, t, h0 : h0 + width])
        counters[b, segment] = own.reshape(blocks, FIELDS * BLOCK)


@njit(inline="always")
def _add(row, shift, absolute, of_rms, of_median, by_rms, by_median, t, counters):
    """Count the dimensions of one token's block; field f of dimension h is at f * BLOCK + h."""
    lowest = min(absolute, min(of_rms, of_median))
    for h in range(row.size):
        bits = _value_bits(row[h], shift)
        magnitude = np.int32(bits & MAGNITUDE)
        finite = np.int32(magnitude < INFINITY)
        hit = np.int32(np.int32(magnitude >= absolute) & finite)
        counters[ABSOLUTE * BLOCK + h] += hit
        counters[RELATIVE * BLOCK + h] += np.int32(np.int32(magnitude >= of_rms) & finite)
        counters[MASSIVE * BLOCK + h] += np.int32(np.int32(magnitude >= of_median) & finite)
        counters[NEGATIVE * BLOCK + h] += np.int32(hit & np.int32(bits < 0))
        shown = np.int32(magnitude * hit)
        larger = shown > counters[LARGEST * BLOCK + h]
        counters[LARGEST * BLOCK + h] = shown if larger else counters[LARGEST * BLOCK + h]
        counters[LARGEST_AT * BLOCK + h] = np.int32(t) if larger else counters[LARGEST_AT * BLOCK + h]
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


@njit(nogil=True, cache=True)
def _collect(
    x, shift, start, length, absolute, point, counters,
    count, negative, peak, peak_at, over_rms, over_median, first_values, first_points, first_positions, filled,
):  # fmt: skip
    """Counters of all segments to where they belong; the first values of dimensions that have hits and lack some."""
    batch, segments = counters.shape[:2]
    for b in range(batch):
        for h in range(x.shape[2]):
            largest = np.int32(0)
            for segment in range(segments):
                mine = counters[b, segment, h // BLOCK, h % BLOCK :: BLOCK]
                for criterion in range(3):
                    count[b, criterion, h] = mine[criterion] + (count[b, criterion, h] if segment else 0)
                negative[b, h] += mine[NEGATIVE]
                if mine[LARGEST] > largest:
                    largest = mine[LARGEST]
                    peak_at[b, h] = mine[LARGEST_AT]
                    peak[b, h] = _as_float(_value_bits(x[b, start[b] + mine[LARGEST_AT], h], shift))
                over_rms[b, h] = max(over_rms[b, h], _as_float(mine[OVER_RMS]))
                over_median[b, h] = max(over_median[b, h], _as_float(mine[OVER_MEDIAN]))
            t = 1
            while count[b, ABSOLUTE, h] > 0 and filled[b, h] < FIRST_VALUES and t < length[b]:
                bits = _value_bits(x[b, start[b] + t, h], shift)
                if absolute <= np.int32(bits & MAGNITUDE) < INFINITY:
                    slot = filled[b, h]
                    first_values[b, slot, h] = _as_float(bits)
                    first_points[b, slot, h] = point
                    first_positions[b, slot, h] = t
                    filled[b, h] = slot + 1
                t += 1
