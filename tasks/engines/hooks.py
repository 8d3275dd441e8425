"""Edits and captures of one forward pass, as hooks on the model's blocks.

A `Pass` says what happens in the next forward pass; the hooks read it, edit, capture and count. An exception in a
hook is not caught: it ends the pass, and with it the shard.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tasks.engines.bank import Bank
from tasks.engines.edit import Found, TokenEdits, edit_
from tasks.engines.interface import Capture
from tasks.models.layout import Layout, after_blocks
from tasks.sae.sae import SAE


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

    @property
    def whole_layers(self) -> frozenset[int]:
        """Layers where a feature's gate needs the whole dictionary."""
        return frozenset(layer for layer, full in self._full.items() if full)

    def read(self, layer: int, h: Tensor, out: Tensor) -> None:
        """h [B, d] -> the layer's columns of out [B, width] float32."""
        columns, rows = self.layers[layer]
        if self._full[layer]:
            out[:, columns] = self._sae_of(layer).encode(h)[:, self._bank.feature[rows]]
            return
        pre = torch.addmm(self._bank.b[rows], h.float(), self._encoders[layer])
        out[:, columns] = torch.where(pre > self._bank.theta[rows], pre, 0.0)


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass. Without edits and captures the hooks return at once."""

    edits: TokenEdits
    found: Found
    edited_layers: Collection[int] = ()
    """Layers at which a token may have an edit."""
    whole_layers: Collection[int] = ()
    """Those of them where an edit may need the whole dictionary."""
    reader: FeatureReader | None = None
    features: Tensor | None = None
    """[B, reader.width] float32, filled by the pass."""
    residual_layers: Sequence[int] = ()
    residuals: Tensor | None = None
    """[B, len(residual_layers), d] float32, filled by the pass."""


class BlockHooks:
    """Forward hooks on the blocks, for one pass at a time."""

    def __init__(self, layout: Layout, bank: Bank | None, sae_of: Callable[[int], SAE] | None):
        self._layout, self._bank, self._sae_of = layout, bank, sae_of
        self._banks: dict[torch.device, Bank] = {}
        """Copies for blocks on other devices."""

    @contextmanager
    def during(self, now: Pass) -> Iterator[None]:
        """The hooks are there, and do what `now` says, until the end of the context."""
        captured = () if now.features is None else now.reader.layers
        layers = {*now.edited_layers, *captured, *(() if now.residuals is None else now.residual_layers)}
        with after_blocks(self._layout, layers, partial(self._act, now)):
            yield

    def _act(self, now: Pass, layer: int, hidden: Tensor) -> None:
        if layer in now.edited_layers:
            self._edit(hidden, layer, now)
        if now.features is not None and layer in now.reader.layers:
            now.reader.read(layer, hidden[:, -1].to(now.features.device), now.features)
        if now.residuals is not None and layer in now.residual_layers:
            now.residuals[:, now.residual_layers.index(layer)] = hidden[:, -1].float()

    def _edit(self, hidden: Tensor, layer: int, now: Pass) -> None:
        dictionary = self._dictionary(layer) if layer in now.whole_layers else None
        if hidden.device == self._bank.u.device:
            edit_(hidden, None, layer, now.edits, self._bank, now.found, dictionary)
            return
        # A split model: the block is on another device than the state of the batch.
        if hidden.device not in self._banks:
            self._banks[hidden.device] = self._bank.to(hidden.device)
        found = Found.empty(now.found.f.shape[0], hidden.device)
        dictionary = dictionary and dictionary.to(hidden.device)
        edit_(hidden, None, layer, now.edits.to(hidden.device), self._banks[hidden.device], found, dictionary)
        now.found.add(found)

    def _dictionary(self, layer: int) -> SAE:
        if self._sae_of is None:
            raise ValueError(f"layer {layer}: mode 'reconstruct' and TopK gates need the layer's SAE, none given")
        return self._sae_of(layer)
