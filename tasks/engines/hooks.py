"""Edits and captures of one forward pass, as hooks on the model's blocks.

A `Pass` says what happens in the next forward pass; the hooks read it, edit, capture and count. An exception in a
hook is not caught: it ends the pass, and with it the shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.engines.bank import Bank
from tasks.engines.edit import LayerEdits, apply
from tasks.engines.interface import Capture
from tasks.models.layout import Layout, block_output, replace_block_output
from tasks.sae.sae import SAE


@dataclass(eq=False)
class EditLog:
    """What happened to each slot of a batch."""

    applied: Tensor
    """[B] int64: edited positions so far."""
    f: Tensor
    """[B] float32: activation before the edit of the last prompt position; NaN until then."""
    relative_delta: Tensor
    """[B] float32: |h' - h| / |h| of that edit; NaN until then."""

    @classmethod
    def empty(cls, size: int, device: torch.device) -> EditLog:
        nan = torch.full((size,), float("nan"), device=device)
        return cls(torch.zeros(size, dtype=torch.int64, device=device), nan, nan.clone())

    def reset(self, slots: Tensor) -> None:
        self.applied[slots] = 0
        self.f[slots] = self.relative_delta[slots] = float("nan")

    def keep(self, slots: Tensor) -> None:
        self.applied, self.f = self.applied[slots], self.f[slots]
        self.relative_delta = self.relative_delta[slots]

    def record(self, edits: LayerEdits, f: Tensor, relative_delta: Tensor) -> None:
        """One entry per slot, except in a prefix's pass, of which only the count is used."""
        slots = edits.slot
        first = self.f[slots].isnan()
        self.f[slots] = torch.where(first, f, self.f[slots])
        self.relative_delta[slots] = torch.where(first, relative_delta, self.relative_delta[slots])
        self.applied.index_add_(0, slots, torch.ones_like(slots))


class FeatureReader:
    """Activations of chosen bank rows, layer by layer, as one matrix product each."""

    def __init__(self, bank: Bank, capture: Capture, sae_of: Callable[[int], SAE] | None):
        of = bank.layer.tolist()
        self.width = len(capture.rows)
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        """layer -> (columns of the output [n], bank rows [n])"""
        for layer in sorted({of[row] for row in capture.rows}):
            columns = [i for i, row in enumerate(capture.rows) if of[row] == layer]
            rows = [capture.rows[i] for i in columns]
            device = bank.u.device
            self.layers[layer] = torch.tensor(columns, device=device), torch.tensor(rows, device=device)
        self._bank, self._sae_of = bank, sae_of
        self._encoders = {layer: bank.u[rows].T.contiguous() for layer, (_, rows) in self.layers.items()}
        self._full = {layer: bool(bank.full_encode[rows].any()) for layer, (_, rows) in self.layers.items()}

    def read(self, layer: int, h: Tensor, out: Tensor) -> None:
        """h [B, d] -> the layer's columns of out [B, width] float32."""
        columns, rows = self.layers[layer]
        if self._full[layer]:
            out[:, columns] = self._sae_of(layer).encode(h)[:, self._bank.feature[rows]]
            return
        pre = torch.addmm(self._bank.b[rows], h.float(), self._encoders[layer])
        out[:, columns] = torch.where(pre > self._bank.theta[rows], pre, 0.0)


@dataclass(eq=False)
class Pass:
    """One forward pass. Without edits and captures the hooks return at once."""

    edits: Mapping[int, LayerEdits]
    """layer -> its edits"""
    log: EditLog
    reader: FeatureReader | None = None
    features: Tensor | None = None
    """[B, reader.width] float32, filled by the pass."""
    residual_layers: Sequence[int] = ()
    residuals: Tensor | None = None
    """[B, len(residual_layers), d] float32, filled by the pass."""


class BlockHooks:
    """Forward hooks on the blocks of `layers`; set `current` before a pass."""

    def __init__(self, layout: Layout, bank: Bank | None, sae_of: Callable[[int], SAE] | None):
        self._layout, self._bank, self._sae_of = layout, bank, sae_of
        self.current: Pass | None = None

    @contextmanager
    def installed(self, layers: Sequence[int]) -> Iterator[BlockHooks]:
        handles = [self._layout.blocks[layer].register_forward_hook(self._hook(layer)) for layer in layers]
        try:
            yield self
        finally:
            self.current = None
            for handle in handles:
                handle.remove()

    def _hook(self, layer: int) -> Callable:
        def hook(module, args, output):
            now = self.current
            if now is None:
                return None
            hidden, edits = block_output(output), now.edits.get(layer)
            if edits is not None:
                hidden, applied = apply(hidden, edits, self._bank, self._sae_of, layer)
                now.log.record(edits, applied.f, applied.relative_delta)
            if now.features is not None and layer in now.reader.layers:
                now.reader.read(layer, hidden[:, -1], now.features)
            if now.residuals is not None and layer in now.residual_layers:
                now.residuals[:, now.residual_layers.index(layer)] = hidden[:, -1].float()
            return None if edits is None else replace_block_output(output, hidden)

        return hook
