"""Captures: which vectors of a pass are kept, where, and under which label.

Kept vectors stay on the device, in one place for each row of the batch and each position that is asked for, until the
row's trial ends.

B rows, C places, F captured features, L captured layers, d = d_model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tasks.engines.bank import Bank
from tasks.engines.hooks import FeatureReader
from tasks.engines.interface import Capture, CapturedRow, Position, Trial
from tasks.engines.state import BatchState
from tasks.sae.sae import SAE


class Recorder:
    """What one call captures, and buffers for the rows of one batch."""

    def __init__(
        self,
        capture: Capture,
        bank: Bank | None,
        sae_of: Callable[[int], SAE] | None,
        d_model: int,
        device: torch.device,
    ):
        self.capture, self._d_model, self._device = capture, d_model, device
        self.reader = FeatureReader(bank, capture, sae_of) if capture.rows else None
        self.now: dict[str, Tensor] = {}
        """What a pass fills: features [B, F] and residuals [B, L, d], float32."""
        self._kept: dict[str, Tensor] = {}
        """features [B, C, F] float16, residuals [B, C, L, d] float32"""

    @classmethod
    def nothing(cls, device: torch.device) -> Recorder:
        return cls(Capture(), None, None, 0, device)

    @property
    def every_pass(self) -> bool:
        """Whether a pass is a trial's last is known only after it, so `final` needs every pass."""
        return self.capture.positions != ("last",)

    @property
    def whole_layers(self) -> frozenset[int]:
        """Layers where a captured feature's gate needs the whole dictionary."""
        return frozenset() if self.reader is None else self.reader.whole_layers

    def allocate(self, size: int, capacity: int) -> None:
        """Buffers for a batch of `size` rows and at most `capacity` new tokens."""
        places = capacity if "decode" in self.capture.positions else len(self.capture.positions)
        widths = {}
        if self.reader is not None:
            widths["features"] = (self.reader.width,), torch.float16
        if self.capture.residual_layers:
            widths["residuals"] = (len(self.capture.residual_layers), self._d_model), torch.float32
        for name, (width, dtype) in widths.items():
            self.now[name] = torch.zeros(size, *width, device=self._device)
            self._kept[name] = torch.zeros(size, places, *width, dtype=dtype, device=self._device)

    def select(self, rows: Tensor) -> None:
        """Follow a batch whose row i was row rows[i]."""
        self.now = {name: buffer[rows] for name, buffer in self.now.items()}
        self._kept = {name: buffer[rows] for name, buffer in self._kept.items()}

    def keep(self, state: BatchState) -> None:
        """After a pass, before its token is counted: put what it captured in its places."""
        for name, captured in self.now.items():
            kept = self._kept[name]
            captured = captured.to(kept.dtype)
            per_row = (slice(None), *[None] * (captured.dim() - 1))
            if "decode" in self.capture.positions:
                index = state.at[per_row][:, None].expand(-1, 1, *captured.shape[1:])
                before = kept.gather(1, index)
                kept.scatter_(1, index, torch.where(state.live[per_row][:, None], captured[:, None], before))
                continue
            for place, position in enumerate(self.capture.positions):
                wanted = state.live & (state.steps == 0) if position == "last" else state.live
                kept[:, place] = torch.where(wanted[per_row], captured, kept[:, place])

    def pack(self, rows: Tensor) -> dict[str, Tensor]:
        """The places of some rows, [n, C, ...] each."""
        return {name: kept[rows] for name, kept in self._kept.items()}

    def unpack(
        self, trial: Trial, tokens: tuple[int, ...], features: np.ndarray | None, residuals: np.ndarray | None
    ) -> tuple[tuple[CapturedRow, ...], np.ndarray | None, np.ndarray | None]:
        """A finished trial's labels, features [rows, F] float16 and residuals [rows, L, d] float32.

        Raises OverflowError when an activation does not fit float16.
        """
        if self.capture.empty:
            return (), None, None
        labels = labels_of(trial, tokens, self.capture.positions)
        if features is not None:
            features = features[: len(labels)].copy()
            check_float16(features, labels)
        return labels, features, None if residuals is None else residuals[: len(labels)].copy()


def labels_of(trial: Trial, tokens: tuple[int, ...], positions: tuple[Position, ...]) -> tuple[CapturedRow, ...]:
    """The labels of a trial's captured rows, in the order of the rows.

    The model read the prompt and all generated tokens but the last.
    """
    read = (*trial.prompt, *tokens[:-1])
    last, final = len(trial.prompt) - 1, len(read) - 1
    if "decode" in positions:
        places: list[tuple[Position, int]] = [("decode", place) for place in range(last, final + 1)]
    else:
        places = [(kind, last if kind == "last" else final) for kind in positions]
    return tuple(CapturedRow(trial.id, kind, place, read[place]) for kind, place in places)


def check_float16(features: np.ndarray, labels: tuple[CapturedRow, ...]) -> None:
    """Raises OverflowError when a row of features [rows, F] holds what float16 could not."""
    if not np.isfinite(features).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(features))[0])
        raise OverflowError(
            f"trial {labels[row].trial}, position {labels[row].position}: the activation of captured feature number "
            f"{column} is beyond float16 (65504); capture that feature elsewhere or leave it out"
        )
