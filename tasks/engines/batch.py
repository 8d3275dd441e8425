"""The rows of a running batch: one slot per trial, refilled as trials finish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tasks.engines.attention import PrefixGroup, SuffixCache
from tasks.engines.edit import LayerEdits
from tasks.engines.hooks import EditLog
from tasks.engines.interface import CapturedRow, Edit, Trial
from tasks.engines.prefixes import EditedPrefix
from tasks.engines.sampling import uniforms


@dataclass(eq=False)
class Slot:
    """A trial on its way."""

    trial: Trial
    prefix: EditedPrefix
    uniforms: np.ndarray
    """[max_new_tokens] float64"""
    tokens: list[int] = field(default_factory=list)
    """Generated so far."""
    rows: list[CapturedRow] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    residuals: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def start(cls, trial: Trial, prefix: EditedPrefix) -> Slot:
        return cls(trial, prefix, uniforms(trial.seed, trial.max_new_tokens))

    @property
    def steps(self) -> int:
        """Tokens of the suffix that the model has read: the last of the prompt, then generated ones."""
        return len(self.tokens)

    @property
    def read_position(self) -> int:
        """Position that the pass just done read, once its token is appended."""
        return self.prefix.prefix.length + len(self.tokens) - 1

    @property
    def read_token(self) -> int:
        """Token that the pass just done read, once its own is appended."""
        return self.tokens[-2] if len(self.tokens) > 1 else self.trial.prompt[-1]

    @property
    def next_input(self) -> int:
        return self.tokens[-1] if self.tokens else self.trial.prompt[-1]

    @property
    def edit_now(self) -> Edit | None:
        """The edit of the coming pass."""
        edit = self.trial.edit
        return edit if edit is not None and (edit.scope != "last" or not self.tokens) else None


class Batch:
    """Slots and the device tensors that a pass needs, rebuilt when the slots change."""

    def __init__(
        self,
        slots: list[Slot],
        capacity: int,
        n_layers: int,
        device: torch.device,
        make_edits: Callable[[list[tuple[int, int, Edit]]], dict[int, LayerEdits]],
    ):
        self.slots = slots
        self.cache = SuffixCache(n_layers, len(slots), capacity)
        self.log = EditLog.empty(len(slots), device)
        self._device, self._make_edits = device, make_edits
        self._edited: tuple[Edit | None, ...] | None = None
        self.edits: dict[int, LayerEdits] = {}
        self._slots_changed()
        self._add_prefix_edits(range(len(slots)))

    def __len__(self) -> int:
        return len(self.slots)

    def replace(self, new: dict[int, Slot]) -> None:
        """Put trials into the slots of finished ones."""
        for index, slot in new.items():
            self.slots[index] = slot
        self.log.reset(torch.tensor(sorted(new), device=self._device))
        self._add_prefix_edits(new)
        self._slots_changed()

    def keep(self, indices: list[int]) -> None:
        """Drop all slots but these."""
        self.slots = [self.slots[i] for i in indices]
        index = torch.tensor(indices, dtype=torch.int64, device=self._device)
        self.cache.keep(index)
        self.log.keep(index)
        self._slots_changed()

    def prepare(self) -> tuple[Tensor, Tensor]:
        """Before a pass: input ids and positions, [B, 1] each; edits and cache are brought up to date."""
        steps = np.array([slot.steps for slot in self.slots])
        self.cache.lengths = torch.from_numpy(steps).to(self._device)
        self.cache.longest, self.cache.uniform = int(steps.max()), bool((steps == steps[0]).all())
        edited = tuple(slot.edit_now for slot in self.slots)
        if edited != self._edited:
            self._edited = edited
            self.edits = self._make_edits([(i, i, edit) for i, edit in enumerate(edited) if edit is not None])
        ids = torch.tensor([[slot.next_input] for slot in self.slots], device=self._device)
        return ids, (self._prefix_lengths + self.cache.lengths)[:, None]

    def uniforms(self) -> Tensor:
        """[B] float64: each trial's random number for the token to come."""
        return torch.tensor([slot.uniforms[slot.steps] for slot in self.slots], device=self._device)

    def _slots_changed(self) -> None:
        trials = [slot.trial for slot in self.slots]
        self.temperature = torch.tensor([t.temperature for t in trials], device=self._device)
        self.top_p = torch.tensor([t.top_p for t in trials], device=self._device)
        lengths = [slot.prefix.prefix.length for slot in self.slots]
        self._prefix_lengths = torch.tensor(lengths, dtype=torch.int64, device=self._device)
        self._edited = None
        members: dict[int, list[int]] = {}
        for i, slot in enumerate(self.slots):
            members.setdefault(id(slot.prefix), []).append(i)
        self.cache.groups = [
            PrefixGroup(
                self.slots[rows[0]].prefix.prefix,
                None if len(members) == 1 else torch.tensor(rows, device=self._device),
            )
            for rows in members.values()
        ]

    def _add_prefix_edits(self, indices) -> None:
        for i in indices:
            self.log.applied[i] += self.slots[i].prefix.edits_applied


def edits_by_layer(
    wanted: list[tuple[int, int, Edit]],
    layer_of_row: list[int],
    full_encode: list[bool],
    device: torch.device,
) -> dict[int, LayerEdits]:
    """Sort (token, slot, edit) triples into one `LayerEdits` per layer."""
    layers = Counter(layer_of_row[edit.row] for _, _, edit in wanted)
    out = {}
    for layer in sorted(layers):
        of_layer = [(token, slot, edit) for token, slot, edit in wanted if layer_of_row[edit.row] == layer]
        token, slot, edits = zip(*of_layer, strict=True)
        reconstruct = [edit.mode == "reconstruct" for edit in edits]
        values = [float("nan") if edit.value is None else edit.value for edit in edits]
        out[layer] = LayerEdits(
            token=torch.tensor(token, device=device),
            slot=torch.tensor(slot, device=device),
            row=torch.tensor([edit.row for edit in edits], device=device),
            value=torch.tensor(values, dtype=torch.float32, device=device),
            reconstruct=torch.tensor(reconstruct, device=device),
            any_reconstruct=any(reconstruct),
            any_full_encode=any(full_encode[edit.row] for edit in edits),
        )
    return out
