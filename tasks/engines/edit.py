"""The one operation of the engines: edit the residual vectors of many tokens, each in its own way.

    keep_error    h' = h + (v - f) w,                 f = h . u + b where that exceeds theta, else 0
    reconstruct   h' = decode(encode(h)) + (v - f) w  (v NaN: the second term is absent)

Each token names a bank row and a value, or nothing. The dot product, the gate and the change are float32; h' is cast
to the stream's dtype once. With v = f the change is exactly zero and h' is bit for bit h. What was applied is
counted where it happens, on the device.

`edit_` has two implementations with the same tests: plain torch here, and a Triton kernel (`edit_kernel`) for CUDA.
Shapes: N tokens, d = d_model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from tasks.engines.bank import Bank
from tasks.sae.sae import SAE


@dataclass(frozen=True, eq=False)
class TokenEdits:
    """The edit of each token of a forward pass, in buffers that stay where they are."""

    layer: Tensor
    """[N] int32: the layer whose output is edited; -1 where the token has no edit."""
    row: Tensor
    """[N] int32: bank row; 0 where there is no edit."""
    value: Tensor
    """[N] float32: the activation to set; NaN where there is none (reconstruction alone)."""
    reconstruct: Tensor
    """[N] bool: mode `reconstruct`."""

    @classmethod
    def empty(cls, n: int, device: torch.device | str) -> TokenEdits:
        return cls(
            torch.full((n,), -1, dtype=torch.int32, device=device),
            torch.zeros(n, dtype=torch.int32, device=device),
            torch.full((n,), float("nan"), device=device),
            torch.zeros(n, dtype=torch.bool, device=device),
        )

    def fill(self, bank: Bank, row: Tensor, value: Tensor, reconstruct: Tensor) -> None:
        """Write the edits of the first n tokens ([n] each; row -1: none); the tokens after them get none."""
        n = row.shape[0]
        known = row.clamp(min=0)
        self.layer[:n] = torch.where(row >= 0, bank.layer[known], -1)
        self.layer[n:] = -1
        self.row[:n] = known
        self.value[:n] = value
        self.reconstruct[:n] = reconstruct

    def to(self, device: torch.device) -> TokenEdits:
        return TokenEdits(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True, eq=False)
class Found:
    """What a forward pass found at each token, in buffers that stay where they are."""

    applied: Tensor
    """[N] int32: edits applied, 0 or 1 in one pass."""
    f: Tensor
    """[N] float32: the feature's activation before the edit; NaN where there was none."""
    relative_delta: Tensor
    """[N] float32: |h' - h| / |h|; NaN where there was no edit."""

    @classmethod
    def empty(cls, n: int, device: torch.device | str) -> Found:
        nan = torch.full((n,), float("nan"), device=device)
        return cls(torch.zeros(n, dtype=torch.int32, device=device), nan, nan.clone())

    def clear(self) -> None:
        self.applied.zero_()
        self.f.fill_(float("nan"))
        self.relative_delta.fill_(float("nan"))

    def add(self, other: Found) -> None:
        """What was found elsewhere at tokens that have nothing here."""
        there = other.applied.to(self.applied.device)
        self.applied += there
        self.f.copy_(torch.where(there > 0, other.f.to(self.f.device), self.f))
        self.relative_delta.copy_(torch.where(there > 0, other.relative_delta.to(self.f.device), self.relative_delta))


def edit_(
    hidden: Tensor,
    residual: Tensor | None,
    layer: int,
    edits: TokenEdits,
    bank: Bank,
    found: Found,
    dictionary: SAE | None = None,
) -> None:
    """Edit the output of block `layer` in place: hidden [..., d], its N tokens being the first N of `edits`.

    residual: None, or the part of the stream that the model has not added yet (vLLM's split): then the stream is
    hidden + residual, which is read, and hidden is written.
    dictionary: the layer's SAE, when a token has mode `reconstruct` or a row whose gate needs the whole encode.

    Raises ValueError when a token needs the dictionary and there is none (plain torch only: the kernel is not used
    where a dictionary is given, and does not look for rows that would need one).
    """
    flat = hidden.view(-1, hidden.shape[-1])
    rest = None if residual is None else residual.view_as(flat)
    if flat.is_cuda and dictionary is None and has_kernel():
        from tasks.engines.edit_kernel import edit_rows_

        edit_rows_(flat, rest, layer, edits, bank, found)
    else:
        edit_reference_(flat, rest, layer, edits, bank, found, dictionary)


@cache
def has_kernel() -> bool:
    """Whether Triton is here. It comes with torch for CUDA on Linux."""
    return find_spec("triton") is not None


def edit_reference_(
    hidden: Tensor,
    residual: Tensor | None,
    layer: int,
    edits: TokenEdits,
    bank: Bank,
    found: Found,
    dictionary: SAE | None,
) -> None:
    """`edit_` in plain torch; hidden and residual [N, d]. Picks the tokens of the layer, which a device waits for."""
    token = (edits.layer[: hidden.shape[0]] == layer).nonzero().flatten()
    if not token.numel():
        return
    row, value, reconstruct = edits.row[token].long(), edits.value[token], edits.reconstruct[token]
    rest = 0.0 if residual is None else residual[token].float()
    h = hidden[token].float() + rest
    f = activation(h, bank.u[row], bank.b[row], bank.theta[row])
    full = bank.full_encode[row]
    code = None
    if bool((reconstruct | full).any()):
        if dictionary is None:
            raise ValueError(f"layer {layer}: mode 'reconstruct' and TopK gates need the layer's SAE, none given")
        code = dictionary.encode(h)
        f = torch.where(full, code.gather(-1, bank.feature[row][:, None]).squeeze(-1), f)
    change = torch.nan_to_num(value - f, nan=0.0)[:, None] * bank.w[row]
    if code is not None:
        change = torch.where(reconstruct[:, None], dictionary.decode(code) - h + change, change)
    hidden[token] = (hidden[token].float() + change).to(hidden.dtype)
    found.applied[token] = 1
    found.f[token] = f
    found.relative_delta[token] = change.norm(dim=-1) / h.norm(dim=-1).clamp_min(torch.finfo(h.dtype).tiny)


def activation(h: Tensor, u: Tensor, b: Tensor, theta: Tensor) -> Tensor:
    """f of one feature per token: h [N, d], u [N, d], b [N], theta [N] -> [N] float32.

    A product and a sum over d for each token alone, so that the result does not depend on the other tokens.
    """
    pre = (h * u).sum(-1) + b
    return torch.where(pre > theta, pre, 0.0)
