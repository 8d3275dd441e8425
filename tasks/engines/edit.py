"""The one operation of the engine: apply the edits of one layer to the residual vectors of many tokens.

    keep_error    h' = h + (v - f) w,                 f = h . u + b where that exceeds theta, else 0
    reconstruct   h' = decode(encode(h)) + (v - f) w  (v None: the second term is absent)

The dot product, the gate and the change are float32; h' is cast to the stream's dtype once. With v = f the change
is exactly zero and h' is bit for bit h. Shapes: N = edited tokens, d = d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.engines.bank import Bank
from tasks.sae.sae import SAE


@dataclass(frozen=True, eq=False)
class LayerEdits:
    """The edits of one layer in one forward pass."""

    token: Tensor
    """[N] int64: which of the pass's tokens (batch x positions, flattened); no token twice."""
    slot: Tensor
    """[N] int64: which trial of the batch the edit belongs to."""
    row: Tensor
    """[N] int64: bank row."""
    value: Tensor
    """[N] float32; NaN where there is no value to set (reconstruction alone)."""
    reconstruct: Tensor
    """[N] bool"""
    any_reconstruct: bool
    any_full_encode: bool


@dataclass(frozen=True, eq=False)
class Applied:
    """What an application found, one entry per edited token."""

    f: Tensor
    """[N] float32: the feature's activation before the edit."""
    relative_delta: Tensor
    """[N] float32: |h' - h| / |h|."""


def activation(h: Tensor, u: Tensor, b: Tensor, theta: Tensor) -> Tensor:
    """f of one feature per token: h [N, d], u [N, d], b [N], theta [N] -> [N] float32.

    A product and a sum over d for each token alone, so that the result does not depend on the other tokens.
    """
    pre = (h.float() * u).sum(-1) + b
    return torch.where(pre > theta, pre, 0.0)


def apply(
    hidden: Tensor, edits: LayerEdits, bank: Bank, sae_of: Callable[[int], SAE] | None, layer: int
) -> tuple[Tensor, Applied]:
    """Edit the output of one block: hidden [..., d] -> (a new tensor of its shape and dtype, what was found).

    `sae_of(layer)` gives the whole dictionary, which the mode `reconstruct` and TopK gates need.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    h = flat[edits.token].float()
    row = edits.row
    f = activation(h, bank.u[row], bank.b[row], bank.theta[row])
    base = h
    if edits.any_reconstruct or edits.any_full_encode:
        if sae_of is None:
            raise ValueError(f"layer {layer}: mode 'reconstruct' and TopK gates need the layer's SAE, none given")
        sae = sae_of(layer)
        code = sae.encode(h)
        f = torch.where(bank.full_encode[row], code.gather(-1, bank.feature[row][:, None]).squeeze(-1), f)
        base = torch.where(edits.reconstruct[:, None], sae.decode(code), h)
    change = torch.nan_to_num(edits.value - f, nan=0.0)
    edited = base + change[:, None] * bank.w[row]
    relative_delta = (edited - h).norm(dim=-1) / h.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    out = flat.clone()
    out[edits.token] = edited.to(flat.dtype)
    return out.view_as(hidden), Applied(f, relative_delta)
