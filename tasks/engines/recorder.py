"""Captures: which vectors of a pass are kept, under which label."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tasks.engines.bank import Bank
from tasks.engines.batch import Batch, Slot
from tasks.engines.hooks import FeatureReader, Pass
from tasks.engines.interface import Capture, CapturedRow, Position
from tasks.sae.sae import SAE


class Recorder:
    """Prepares each pass for what is to be captured, and keeps the rows that were asked for."""

    def __init__(self, capture: Capture, bank: Bank | None, sae_of: Callable[[int], SAE] | None, d_model: int):
        self._capture, self._d_model = capture, d_model
        self._reader = FeatureReader(bank, capture, sae_of) if capture.rows else None
        self._pass: Pass | None = None

    def begin(self, batch: Batch) -> Pass:
        """The coming pass of a batch."""
        self._pass = Pass(batch.edits, batch.log)
        if self._capture.empty or not self._needed(batch.slots):
            return self._pass
        device, size = batch.log.f.device, len(batch)
        if self._reader is not None:
            self._pass.reader = self._reader
            self._pass.features = torch.empty(size, self._reader.width, device=device)
        if self._capture.residual_layers:
            layers = list(self._capture.residual_layers)
            self._pass.residual_layers = layers
            self._pass.residuals = torch.empty(size, len(layers), self._d_model, device=device)
        return self._pass

    def _needed(self, slots: Sequence[Slot]) -> bool:
        # Whether a pass is a trial's last is known only after it, so `final` needs every pass.
        return self._capture.positions != ("last",) or any(not slot.tokens for slot in slots)

    def store(self, batch: Batch, done: Sequence[int]) -> None:
        """After a pass, with the sampled tokens appended: keep what the positions ask for."""
        if self._capture.empty:
            return
        finished = set(done)
        kept: list[tuple[int, Position]] = []
        for i, slot in enumerate(batch.slots):
            if "decode" in self._capture.positions:
                kept.append((i, "decode"))
            if "last" in self._capture.positions and len(slot.tokens) == 1:
                kept.append((i, "last"))
            if "final" in self._capture.positions and i in finished:
                kept.append((i, "final"))
        if not kept:
            return
        index = torch.tensor([i for i, _ in kept], device=batch.log.f.device)
        features = _take(self._pass.features, index)
        residuals = _take(self._pass.residuals, index)
        for n, (i, kind) in enumerate(kept):
            slot = batch.slots[i]
            slot.rows.append(CapturedRow(slot.trial.id, kind, slot.read_position, slot.read_token))
            if features is not None:
                slot.features.append(_as_float16(features[n], slot))
            if residuals is not None:
                slot.residuals.append(residuals[n])

    def collect(self, slot: Slot) -> tuple[np.ndarray | None, np.ndarray | None]:
        """A finished trial's features [rows, F] float16 and residuals [rows, L, d] float32."""
        return (
            np.stack(slot.features) if slot.features else None,
            np.stack(slot.residuals) if slot.residuals else None,
        )


def _take(tensor: Tensor | None, index: Tensor) -> np.ndarray | None:
    return None if tensor is None else tensor[index].cpu().numpy()


def _as_float16(features: np.ndarray, slot: Slot) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = features.astype(np.float16)
    if not np.isfinite(half).all():
        worst = int(np.argmax(np.abs(features)))
        raise OverflowError(
            f"trial {slot.trial.id}, position {slot.read_position}: the activation of captured feature number "
            f"{worst} is {features[worst]}, beyond float16 (65504); capture that feature elsewhere or leave it out"
        )
    return half
