"""Sequences of different lengths in one batch, and their residual streams.

Padding never changes a result: pads are masked, and every row counts its own positions from its first real token.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tasks.errors import BadInput
from tasks.models.layout import Layout, after_blocks
from tasks.models.load import LoadedModel
from tasks.models.memory import Halving


@dataclass(frozen=True, eq=False)
class Batch:
    input_ids: Tensor
    """[n, longest] int64"""
    attention_mask: Tensor
    """[n, longest] int64: 1 at tokens, 0 at pads"""
    position_ids: Tensor
    """[n, longest] int64: 0, 1, 2 ... from each row's first token; 0 at leading pads"""

    def to(self, device: str | torch.device) -> Batch:
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.position_ids.to(device))

    def rows(self, rows: slice) -> Batch:
        return Batch(self.input_ids[rows], self.attention_mask[rows], self.position_ids[rows])

    def inputs(self, module: nn.Module) -> dict[str, Tensor]:
        """Keyword arguments for `module`'s forward; position ids only where it takes them (BLOOM has none)."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if "position_ids" in inspect.signature(module.forward).parameters:
            inputs["position_ids"] = self.position_ids
        return inputs


def pad(sequences: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"] = "left") -> Batch:
    """Token sequences, none of them empty, as one rectangular batch on the CPU."""
    if not sequences or not all(len(s) for s in sequences):
        raise BadInput("sequences", sequences, "needs at least one sequence and no empty one", "drop empty prompts")
    longest = max(map(len, sequences))
    input_ids = torch.full((len(sequences), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        start = longest - len(sequence) if side == "left" else 0
        input_ids[row, start : start + len(sequence)] = torch.tensor(sequence)
        mask[row, start : start + len(sequence)] = 1
    return Batch(input_ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0))


@torch.no_grad()
def residuals_at_last_token(
    loaded: LoadedModel,
    sequences: Sequence[Sequence[int]],
    layers: Sequence[int] | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Residual stream after blocks `layers` (all when None) at each sequence's last token.

    Returns [n, len(layers), d_model] float32 on the CPU, in the order of `sequences`. Sequences of similar length
    share a batch; blocks above the deepest layer and the head do not run; the batch is halved when memory runs out.
    """
    layout = loaded.layout
    layers = range(layout.n_layers) if layers is None else layers
    out_of_range = [layer for layer in layers if not 0 <= layer < layout.n_layers]
    if out_of_range or not layers:
        raise BadInput("layers", list(layers), f"the model has layers 0..{layout.n_layers - 1}", "choose among them")
    by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
    out = torch.empty(len(sequences), len(layers), layout.d_model)

    def run(rows: Sequence[int]) -> Tensor:
        """[n, len(layers), d_model] float32, on the CPU."""
        batch, stack = pad([sequences[i] for i in rows], loaded.pad_id).to(loaded.device), layout.stack
        captured: dict[int, Tensor] = {}
        with after_blocks(layout, layers, lambda layer, x: captured.update({layer: x[:, -1].float()})):
            stack(**batch.inputs(stack), use_cache=False)
        return torch.stack([captured[layer].to("cpu") for layer in layers], dim=1)

    with truncated(layout, max(layers) + 1):
        for rows, residuals in Halving(batch_size).over(by_length, run):
            out[rows] = residuals
    return out


@contextmanager
def truncated(layout: Layout, n_layers: int) -> Iterator[None]:
    """Inside, the stack runs its first `n_layers` blocks only (the final norm still follows)."""
    name = next(name for name, child in layout.stack.named_children() if child is layout.blocks)
    setattr(layout.stack, name, layout.blocks[:n_layers])
    try:
        yield
    finally:
        setattr(layout.stack, name, layout.blocks)
