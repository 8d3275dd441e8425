"""The edit operation as one Triton kernel: a program per token, which leaves at once when another layer is meant.

It reads a row of the stream and two rows of the bank, and writes one row of the stream, so its cost is that of the
edited tokens alone. No result reaches the host, no shape depends on the edits: a CUDA graph can hold it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tasks.engines.bank import Bank
from tasks.engines.edit import Found, TokenEdits


def edit_rows_(
    hidden: Tensor, residual: Tensor | None, layer: int, edits: TokenEdits, bank: Bank, found: Found
) -> None:
    """`edit.edit_` for tokens of mode `keep_error` and gates of one row; hidden and residual [N, d], rows dense."""
    n, d = hidden.shape
    if hidden.stride(1) != 1 or (residual is not None and residual.stride(1) != 1):
        raise ValueError(f"the kernel needs dense rows; strides are {hidden.stride()}")
    rest = hidden if residual is None else residual
    _edit_rows[(n,)](
        hidden,
        rest,
        edits.layer,
        edits.row,
        edits.value,
        bank.u,
        bank.b,
        bank.theta,
        bank.w,
        found.applied,
        found.f,
        found.relative_delta,
        layer,
        d,
        hidden.stride(0),
        rest.stride(0),
        HAS_RESIDUAL=residual is not None,
        BLOCK=triton.next_power_of_2(d),
    )


@triton.jit
def _edit_rows(
    hidden,
    residual,
    layer_of,
    row_of,
    value_of,
    u,
    b,
    theta,
    w,
    applied,
    f_before,
    relative_delta,
    layer,
    d,
    hidden_stride,
    residual_stride,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    if tl.load(layer_of + token) == layer:
        row = tl.load(row_of + token).to(tl.int64)
        column = tl.arange(0, BLOCK)
        inside = column < d
        place = hidden + token * hidden_stride + column
        written = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        h = written
        if HAS_RESIDUAL:
            h += tl.load(residual + token * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        pre = tl.sum(h * tl.load(u + row * d + column, mask=inside, other=0.0), axis=0) + tl.load(b + row)
        f = tl.where(pre > tl.load(theta + row), pre, 0.0)
        value = tl.load(value_of + token)
        change = (value - f) * tl.load(w + row * d + column, mask=inside, other=0.0)
        tl.store(place, (written + change).to(hidden.dtype.element_ty), mask=inside)
        tl.store(applied + token, 1)
        tl.store(f_before + token, f)
        size = tl.sqrt(tl.sum(h * h, axis=0))
        tl.store(relative_delta + token, tl.sqrt(tl.sum(change * change, axis=0)) / tl.maximum(size, 1.1754944e-38))
