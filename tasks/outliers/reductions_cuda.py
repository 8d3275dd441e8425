"""The reductions of one point on a GPU: two Triton kernels, each of which reads the activations once.

The same quantities as `reductions_cpu`, with two differences of rounding: a token's sum of squares is a float32, and so
are the thresholds that derive from it. Nothing waits for the host, and what the host reads in the end are reductions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tasks.outliers.reductions import FIRST_VALUES, SiteBuffers

INFINITY = tl.constexpr(0x7F800000)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)
BLOCK = 64
"""Dimensions of one program of the second kernel."""
TILE = 32
"""Positions that it takes at a time."""


def reduce_point(x: Tensor, point: int, buffers: SiteBuffers) -> None:
    """See `SiteBuffers.observe`; x on a GPU."""
    x = x.contiguous()
    batch, columns, d = x.shape
    width = buffers.hits.shape[1]
    thresholds = buffers.thresholds
    relative, massive = torch.empty(2, batch, width, dtype=torch.int32, device=x.device)
    nan, inf = torch.zeros(2, batch, width, dtype=torch.int32, device=x.device)
    count, peak, peak_at = buffers.count[:, point], buffers.peak[:, point], buffers.peak_at[:, point]
    massive_peak = buffers.massive_peak[:, point]
    _tokens[(batch, width)](
        x,
        buffers.start,
        buffers.length,
        columns,
        d,
        int(thresholds.absolute_bits),
        thresholds.relative,
        int(thresholds.massive_bits),
        thresholds.massive_ratio,
        relative,
        massive,
        buffers.rms,
        buffers.median,
        buffers.token_top,
        buffers.token_hits,
        nan,
        inf,
        width,
        SHIFT=16 if x.dtype == torch.bfloat16 else 0,
        D=triton.next_power_of_2(d),
    )
    _dimensions[(batch, triton.cdiv(d, BLOCK))](
        x,
        buffers.start,
        buffers.length,
        columns,
        d,
        int(thresholds.absolute_bits),
        relative,
        massive,
        point,
        buffers.rms,
        buffers.median,
        count,
        count.stride(0),
        buffers.negative,
        peak,
        peak_at,
        massive_peak,
        peak.stride(0),
        buffers.over_rms,
        buffers.over_median,
        buffers.hits,
        buffers.first_values,
        buffers.first_points,
        buffers.first_positions,
        buffers.filled,
        width,
        KEPT=FIRST_VALUES,
        TILE=TILE,
        BLOCK=BLOCK,
    )
    buffers.nan[:, point], buffers.inf[:, point] = nan.sum(1), inf.sum(1)
    buffers.first[:, point] = x[torch.arange(batch, device=x.device), buffers.start]
    buffers.first_rms[:, point], buffers.first_median[:, point] = buffers.rms[:, 0], buffers.median[:, 0]


@triton.jit
def _not_less(limit):
    """Bits of the smallest float32 that is not less than `limit` >= 0; beyond all magnitudes for NaN."""
    return tl.where(limit == limit, limit, float("inf")).to(tl.int32, bitcast=True)


@triton.jit
def _reciprocal(scale):
    """0 where the scale is 0 or unknown."""
    known = scale > 0
    return tl.where(known, 1 / tl.where(known, scale, 1.0), 0.0)


@triton.jit
def _tokens(
    x, start, length, columns, d, absolute, ratio, massive_limit, massive_ratio,
    relative, massive, rms, median, token_top, token_hits, nan, inf, width,
    SHIFT: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Of one token: root mean square, median, hits; from these its thresholds of the other two criteria."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1)
    if t < tl.load(length + b):
        h = tl.arange(0, D)
        inside = h < d
        row = x + (b * columns + tl.load(start + b) + t) * d
        value = tl.load(row + h, mask=inside, other=0.0).to(tl.float32)
        magnitude = value.to(tl.int32, bitcast=True) & MAGNITUDE
        place = b * width + t
        top = tl.max(magnitude, axis=0)
        broken = top >= INFINITY
        not_a_number = tl.sum((magnitude > INFINITY).to(tl.int32), axis=0)
        infinite = tl.sum((magnitude == INFINITY).to(tl.int32), axis=0)
        hits = tl.sum((inside & (magnitude >= absolute) & (magnitude < INFINITY)).to(tl.int32), axis=0)

        size = tl.sqrt(tl.sum(value * value, axis=0) / d)
        # The smallest magnitude that at least half of them do not exceed. Its lowest SHIFT bits are zero.
        shown = tl.where(inside, magnitude >> SHIFT, MAGNITUDE)
        low = tl.full((), -1, tl.int32)
        high = tl.full((), 0x7F7FFFFF >> SHIFT, tl.int32)
        for _ in range(31 - SHIFT):
            middle = low + (high - low) // 2
            enough = 2 * tl.sum((shown <= middle).to(tl.int32), axis=0) >= d
            decided = high - low <= 1
            high = tl.where(enough & (decided == 0), middle, high)
            low = tl.where(enough | decided, low, middle)
        middle_value = (high << SHIFT).to(tl.float32, bitcast=True)

        asked = top >= tl.minimum(absolute, massive_limit)
        middle_value = tl.where(asked, middle_value, 0.0)
        unknown = float("nan")
        size = tl.where(broken, unknown, size)
        middle_value = tl.where(broken, unknown, middle_value)
        tl.store(rms + place, size.to(tl.float64))
        tl.store(median + place, middle_value)
        tl.store(token_top + place, tl.where(broken, unknown, top.to(tl.float32, bitcast=True)))
        tl.store(token_hits + place, hits)
        tl.store(nan + place, not_a_number)
        tl.store(inf + place, infinite)
        tl.store(relative + place, tl.maximum(_not_less(ratio * size), 1))
        of_median = tl.maximum(_not_less(massive_ratio * middle_value), massive_limit)
        tl.store(massive + place, tl.where(asked, of_median, INFINITY))


@triton.jit
def _dimensions(
    x, start, length, columns, d, absolute, relative, massive, point,
    rms, median, count, count_stride, negative, peak, peak_at, massive_peak, peak_stride, over_rms, over_median, hits,
    first_values, first_points, first_positions, filled, width,
    KEPT: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of BLOCK dimensions of a sequence, over its positions but the first: hits and what they are like."""
    b = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = h < d
    n = tl.load(length + b).to(tl.int32)
    first_row = x + (b * columns + tl.load(start + b)) * d
    mine = b * d + h

    of_absolute = tl.zeros((BLOCK,), tl.int32)
    of_relative = tl.zeros((BLOCK,), tl.int32)
    of_massive = tl.zeros((BLOCK,), tl.int32)
    below_zero = tl.zeros((BLOCK,), tl.int32)
    largest = tl.zeros((BLOCK,), tl.int32)
    at = tl.zeros((BLOCK,), tl.int32)
    largest_massive = tl.zeros((BLOCK,), tl.int32)
    by_rms = tl.load(over_rms + mine, mask=inside, other=0.0)
    by_median = tl.load(over_median + mine, mask=inside, other=0.0)
    taken = tl.load(filled + mine, mask=inside, other=0)

    for t0 in range(1, n, TILE):
        t = t0 + tl.arange(0, TILE)
        real = t < n
        token = b * width + t
        there = real[:, None] & inside[None, :]
        value = tl.load(first_row + t[:, None].to(tl.int64) * d + h[None, :], mask=there, other=0.0).to(tl.float32)
        bits = value.to(tl.int32, bitcast=True)
        magnitude = bits & MAGNITUDE
        finite = there & (magnitude < INFINITY)
        of_size = tl.load(relative + token, mask=real, other=0x7FFFFFFF)
        of_middle = tl.load(massive + token, mask=real, other=0x7FFFFFFF)
        hit = (finite & (magnitude >= absolute)).to(tl.int32)
        hit_relative = (finite & (magnitude >= of_size[:, None])).to(tl.int32)
        hit_massive = (finite & (magnitude >= of_middle[:, None])).to(tl.int32)
        some = (hit | hit_relative | hit_massive) > 0

        place = hits + (b * width + t[:, None]) * d + h[None, :]
        marks = tl.load(place, mask=there, other=0)
        new_marks = (hit | (hit_relative << 1) | (hit_massive << 2)).to(tl.uint8)
        tl.store(place, marks | new_marks, mask=there)

        of_absolute += tl.sum(hit, axis=0)
        of_relative += tl.sum(hit_relative, axis=0)
        of_massive += tl.sum(hit_massive, axis=0)
        below_zero += tl.sum(hit * (bits < 0).to(tl.int32), axis=0)
        shown = tl.where(finite, magnitude, 0)
        tile_largest, tile_at = tl.max(shown, axis=0, return_indices=True, return_indices_tie_break_left=True)
        larger = tile_largest > largest
        at = tl.where(larger, t0 + tile_at, at)
        largest = tl.where(larger, tile_largest, largest)
        largest_massive = tl.maximum(largest_massive, tl.max(magnitude * hit_massive, axis=0))

        size = tl.load(rms + token, mask=real, other=0.0).to(tl.float32)
        middle = tl.load(median + token, mask=real, other=0.0)
        shown = tl.where(some, magnitude, 0).to(tl.float32, bitcast=True)
        by_rms = tl.maximum(by_rms, tl.max(shown * _reciprocal(size)[:, None], axis=0))
        by_median = tl.maximum(by_median, tl.max(shown * _reciprocal(middle)[:, None], axis=0))

        slot = taken[None, :] + tl.cumsum(hit, axis=0) - 1
        keep = (hit > 0) & (slot < KEPT)
        kept_at = (b * KEPT + slot) * d + h[None, :]
        tl.store(first_values + kept_at, value, mask=keep)
        tl.store(first_points + kept_at, point, mask=keep)
        tl.store(first_positions + kept_at, tl.broadcast_to(t[:, None], (TILE, BLOCK)), mask=keep)
        taken = tl.minimum(taken + tl.sum(hit, axis=0), KEPT)

    counts = count + b * count_stride + h
    tl.store(counts, of_absolute, mask=inside)
    tl.store(counts + d, of_relative, mask=inside)
    tl.store(counts + 2 * d, of_massive, mask=inside)
    tl.store(negative + mine, tl.load(negative + mine, mask=inside, other=0) + below_zero, mask=inside)
    found = inside & (largest > 0)
    largest_value = tl.load(first_row + at.to(tl.int64) * d + h, mask=found, other=0.0).to(tl.float32)
    tl.store(peak + b * peak_stride + h, largest_value, mask=inside)
    tl.store(peak_at + b * peak_stride + h, at, mask=inside)
    tl.store(massive_peak + b * peak_stride + h, largest_massive.to(tl.float32, bitcast=True), mask=inside)
    tl.store(over_rms + mine, by_rms, mask=inside)
    tl.store(over_median + mine, by_median, mask=inside)
    tl.store(filled + mine, taken, mask=inside)
