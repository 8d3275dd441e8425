"""What a worker records in the pass that edits: feature activations and residual vectors, labelled where they are read.

Of a request's tokens only its last in each pass is ever wanted: the prompt's last token, then every generated one.
M such tokens are picked per pass. Rows stay on the device and leave it in packs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.engines.bank import Bank
from tasks.engines.hooks import FeatureReader
from tasks.engines.interface import Capture
from tasks.engines.vllm.slots import Step
from tasks.sae.sae import SAE

PACK_BYTES = 256 * 2**20
"""Rows of unfinished requests beyond this leave the device."""

LATEST, LAST_OF_PROMPT, KEPT = 0, 2, 3
"""Rows kept per slot when not all are: two that take turns with the position's parity, and the prompt's last."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Recorded rows, in no particular order."""

    slot: np.ndarray
    """[n] int64"""
    position: np.ndarray
    """[n] int64"""
    token: np.ndarray
    """[n] int64: what the model read there."""
    features: np.ndarray
    """[n, F] float16; infinite where an activation is too large for it."""
    residuals: np.ndarray
    """[n, L, d] float32"""

    def select(self, chosen: np.ndarray) -> Rows:
        return Rows(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    @classmethod
    def join(cls, parts: list[Rows]) -> Rows:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


class Captures:
    """The buffers of one capture. Without `static` a pass reads only what it needs; with it, always the same."""

    def __init__(
        self,
        capture: Capture,
        bank: Bank | None,
        dictionary: Callable[[int], SAE],
        d_model: int,
        slots: int,
        max_requests: int,
        device: torch.device,
        static: bool,
    ):
        self.positions, self._static, self._device = capture.positions, static, device
        self._reader = FeatureReader(bank, capture, dictionary) if capture.rows else None
        self._residual_layers = list(capture.residual_layers)
        self.layers = {*self._residual_layers, *(self._reader.layers if self._reader else ())}
        width, depth = len(capture.rows), len(self._residual_layers)
        real = {"dtype": torch.float32, "device": device}
        self._take = torch.zeros(max_requests, dtype=torch.int64, device=device)
        self._features = torch.zeros(max_requests, width, **real)
        self._residuals = torch.zeros(max_requests, depth, d_model, **real)
        self.active = True
        self._n = 0
        self._through = np.full(slots, -1, np.int64)
        """Highest position recorded in each slot: what is read again after a preemption is not recorded again."""
        self._picked: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._chunks: list[tuple[np.ndarray, np.ndarray, Tensor, Tensor, Tensor]] = []
        self._on_host: list[Rows] = []
        if "decode" not in capture.positions:
            self._kept_position = np.full(slots * KEPT, -1, np.int64)
            self._kept_token = torch.zeros(slots * KEPT, dtype=torch.int64, device=device)
            self._kept_features = torch.zeros(slots * KEPT, width, dtype=torch.float16, device=device)
            self._kept_residuals = torch.zeros(slots * KEPT, depth, d_model, **real)

    def restart(self, active: bool) -> None:
        """A new call begins: whatever an abandoned one left is dropped."""
        self.active, self._chunks, self._on_host = active, [], []
        self._through[:] = -1

    def forget(self, slot: int) -> None:
        """A new request takes the slot."""
        self._through[slot] = -1
        if "decode" not in self.positions:
            self._kept_position[slot * KEPT : (slot + 1) * KEPT] = -1

    def begin(self, step: Step) -> None:
        """Choose the tokens that the coming pass records."""
        position = step.position[step.ends]
        wanted = (step.generated >= 0) & (position > self._through[step.slots]) & self.active
        if self.positions == ("last",):
            wanted &= step.generated == 0
        picked = wanted.nonzero()[0]
        self._n = len(picked)
        self._picked = step.slots[picked], position[picked], step.generated[picked] == 0
        self._through[self._picked[0]] = self._picked[1]
        self._take[: self._n] = torch.from_numpy(step.ends[picked]).to(self._device, non_blocking=True)

    def read(self, layer: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Within the pass, after the layer's edits: hidden and residual [N, d], the stream being their sum."""
        n = min(hidden.shape[0], self._take.shape[0]) if self._static else self._n
        if n == 0:
            return
        take = self._take[:n]
        h = hidden[take].float()
        if residual is not None:
            h += residual[take].float()
        if self._reader is not None and layer in self._reader.layers:
            self._reader.read(layer, h, self._features[:n])
        if layer in self._residual_layers:
            self._residuals[:n, self._residual_layers.index(layer)] = h

    def store(self, input_ids: Tensor) -> None:
        """After the pass: keep its rows. input_ids [N]."""
        if self._n == 0:
            return
        slot, position, is_last = self._picked
        n, self._n = self._n, 0
        token = input_ids[self._take[:n]].long()
        features, residuals = self._features[:n].half(), self._residuals[:n]
        self._take.zero_()
        if "decode" in self.positions:
            self._chunks.append((slot, position, token, features, residuals.clone()))
            held = sum(f.nbytes + r.nbytes for *_, f, r in self._chunks)
            if held > PACK_BYTES:
                self._to_host()
            return
        self._keep(slot * KEPT + LATEST + position % 2, position, token, features, residuals)
        if is_last.any():
            of = torch.from_numpy(is_last.nonzero()[0]).to(self._device)
            where = slot[is_last] * KEPT + LAST_OF_PROMPT
            self._keep(where, position[is_last], token[of], features[of], residuals[of])

    def _keep(
        self, where: np.ndarray, position: np.ndarray, token: Tensor, features: Tensor, residuals: Tensor
    ) -> None:
        self._kept_position[where] = position
        index = torch.from_numpy(where).to(self._device)
        self._kept_token[index], self._kept_features[index] = token, features
        self._kept_residuals[index] = residuals

    def _to_host(self) -> None:
        if not self._chunks:
            return
        slot, position, token, features, residuals = zip(*self._chunks, strict=True)
        self._chunks = []
        tensors = (torch.cat(tensors).cpu().numpy() for tensors in (token, features, residuals))
        self._on_host.append(Rows(np.concatenate(slot), np.concatenate(position), *tensors))

    def collect(self, slots: np.ndarray) -> Rows | None:
        """The rows of these slots; they leave the buffers."""
        if "decode" in self.positions:
            self._to_host()
            if not self._on_host:
                return None
            every = Rows.join(self._on_host)
            chosen = np.isin(every.slot, slots)
            self._on_host = [every.select(~chosen)] if not chosen.all() else []
            return every.select(chosen)
        where = (slots[:, None] * KEPT + np.arange(KEPT)).ravel()
        where = where[self._kept_position[where] >= 0]
        index = torch.from_numpy(where).to(self._device)
        tensors = (t[index].cpu().numpy() for t in (self._kept_token, self._kept_features, self._kept_residuals))
        return Rows(where // KEPT, self._kept_position[where], *tensors)
