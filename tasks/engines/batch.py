"""A running batch: which trial stands in which row, and the device tensors of its next step."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.engines.attention import TiledCache
from tasks.engines.bank import Bank
from tasks.engines.edit import Found, TokenEdits
from tasks.engines.hooks import Pass
from tasks.engines.interface import Edit, Trial
from tasks.engines.prefixes import EditedPrefix
from tasks.engines.recorder import Recorder
from tasks.engines.sampling import Kinds
from tasks.engines.state import BatchState, to_device
from tasks.engines.tiles import LEAST_ROWS, PrefixKey, TrialQueue, dimensions


@dataclass(eq=False)
class Slot:
    """A trial on its way, as far as the host knows."""

    trial: Trial
    placed_at: int
    """Number of the batch's first pass that reads it."""
    steps: int = 0
    """Passes that were asked for."""

    @property
    def edit_now(self) -> Edit | None:
        """The edit of the coming pass."""
        edit = self.trial.edit
        return edit if edit is not None and (edit.scope != "last" or not self.steps) else None


@dataclass(frozen=True)
class Plan:
    """What the host knows of a pass, and a recording of the pass depends on."""

    used: int
    """Suffix slots in use."""
    ragged: bool
    """Rows may stand at different places of their suffixes."""
    padded: bool
    """Prefixes may have different lengths."""
    edited_layers: frozenset[int]
    whole_layers: frozenset[int]
    captures: bool
    kinds: Kinds


class Batch:
    """T tiles of R rows. Rows without a trial are computed all the same, and ignored."""

    def __init__(
        self,
        tiles: int,
        rows: int,
        prefix_capacity: int,
        capacity: int,
        n_layers: int,
        recorder: Recorder,
        bank: Bank | None,
        device: torch.device,
    ):
        size = tiles * rows
        self.cache = TiledCache(n_layers, tiles, rows, prefix_capacity, capacity, device)
        self.state = BatchState.empty(size, capacity, device)
        self.recorder, self._bank, self._device, self._n_layers = recorder, bank, device, n_layers
        recorder.allocate(size, capacity)
        self._begin(tiles, rows)

    def _begin(self, tiles: int, rows: int) -> None:
        size = tiles * rows
        self.rows = rows
        self.slots: list[Slot | None] = [None] * size
        self._keys: list[PrefixKey | None] = [None] * tiles
        self._prefixes: list[EditedPrefix | None] = [None] * tiles
        self._edits, self._found = TokenEdits.empty(size, self._device), Found.empty(size, self._device)
        self.passes = 0

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def occupied(self) -> list[int]:
        return [i for i, slot in enumerate(self.slots) if slot is not None]

    def refill(self, queue: TrialQueue, prefix_of: Callable[[PrefixKey], EditedPrefix]) -> None:
        """Free rows take trials of their tile's prefix; an empty tile may take another prefix."""
        placed: list[int] = []
        edited: list[int] = []
        for tile in range(len(self._prefixes)):
            free = [i for i in self._members(tile) if self.slots[i] is None]
            key = self._choose(tile, queue) if len(free) == self.rows else self._keys[tile]
            if not free or key is None or not queue.has(key):
                continue
            prefix = prefix_of(key)
            if prefix is not self._prefixes[tile]:
                self.cache.place(tile, prefix.prefix)
                self._keys[tile], self._prefixes[tile] = key, prefix
            for i, trial in zip(free, queue.take(key, len(free)), strict=False):
                self.slots[i] = Slot(trial, self.passes)
                placed.append(i)
                edited.append(prefix.edits_applied)
        if placed:
            self.state.place(placed, [self.slots[i].trial for i in placed], edited)

    def _members(self, tile: int) -> range:
        return range(tile * self.rows, (tile + 1) * self.rows)

    def _choose(self, tile: int, queue: TrialQueue) -> PrefixKey | None:
        """The prefix that an empty tile serves next: its own while trials wait for it."""
        if self._keys[tile] is not None and queue.has(self._keys[tile]):
            return self._keys[tile]
        return queue.neediest(key for other, key in enumerate(self._keys) if other != tile and key is not None)

    def plan(self, layer_of: list[int], full_encode: list[bool]) -> Plan:
        """The coming pass, as narrow as the host can tell."""
        slots = [slot for slot in self.slots if slot is not None]
        steps = {slot.steps for slot in slots}
        edits = [slot.edit_now for slot in slots]
        fixed = self._device.type == "cpu"  # how far other rows are decides no shape, so no rounding; it costs little
        return Plan(
            used=self.cache.capacity if fixed else max(steps) + 1,
            ragged=fixed or len(steps) > 1,
            padded={len(key[0]) - 1 for key in self._keys if key is not None} != {self.cache.prefix_capacity},
            edited_layers=edited_layers(edits, layer_of),
            whole_layers=edited_layers(edits, layer_of, full_encode),
            captures=not self.recorder.capture.empty and (self.recorder.every_pass or 0 in steps),
            kinds=Kinds.of(slot.trial for slot in slots),
        )

    def widest_plan(self, trials: Collection[Trial], layer_of: list[int], full_encode: list[bool]) -> Plan:
        """A plan that holds for every pass with these trials."""
        edits = [trial.edit for trial in trials]
        return Plan(
            used=self.cache.capacity,
            ragged=True,
            padded=True,
            edited_layers=edited_layers(edits, layer_of),
            whole_layers=edited_layers(edits, layer_of, full_encode),
            captures=not self.recorder.capture.empty,
            kinds=Kinds.of(trials),
        )

    def begin_pass(self, plan: Plan) -> tuple[Pass, Tensor, Tensor]:
        """Bring edits and cache up to date: (the pass, input ids [B, 1], positions [B, 1]). Device work alone."""
        state = self.state
        if plan.edited_layers:
            state.aim(self._edits, self._found, self._bank)
        self.cache.begin(state.at, plan.used, plan.ragged, plan.padded)
        captured = self.recorder.now if plan.captures else {}
        now = Pass(
            self._edits,
            self._found,
            plan.edited_layers,
            plan.whole_layers,
            self.recorder.reader,
            captured.get("features"),
            self.recorder.capture.residual_layers,
            captured.get("residuals"),
        )
        return now, state.next_input[:, None], state.positions[:, None]

    def end_pass(self, plan: Plan, token: Tensor, end_tokens: Tensor) -> None:
        """After sampling token [B]. Device work alone."""
        self.account(plan)
        self.state.append(token, end_tokens)

    def account(self, plan: Plan) -> None:
        """Keep what a pass counted and captured, before its token is appended. Device work alone."""
        if plan.edited_layers:
            self.state.count(self._found)
        if plan.captures:
            self.recorder.keep(self.state)

    def passed(self) -> list[int]:
        """The host's account of a pass; returns the rows that have reached their length."""
        self.passes += 1
        full = []
        for i, slot in enumerate(self.slots):
            if slot is not None:
                slot.steps += 1
                if slot.steps == slot.trial.max_new_tokens:
                    full.append(i)
        return full

    def ended(self, live: np.ndarray, passes: int) -> list[int]:
        """Rows that were not live any more after so many passes."""
        return [i for i, slot in enumerate(self.slots) if slot is not None and slot.placed_at < passes and not live[i]]

    def free(self, rows: list[int], more: dict[str, Tensor] | None = None) -> tuple[list[Trial], dict[str, Tensor]]:
        """Take finished trials out of their rows: (the trials, what the device holds of each).

        more: tensors [B, ...] to hand out too.
        """
        index = to_device(np.array(rows), self._device)
        trials = [self.slots[i].trial for i in rows]
        for i in rows:
            self.slots[i] = None
        held = {name: getattr(self.state, name) for name in ("steps", "tokens", "applied", "f", "relative_delta")}
        held |= more or {}
        return trials, {name: t[index] for name, t in held.items()} | self.recorder.pack(index)

    def shrink(self) -> None:
        """Go on with the rows that have a trial alone, in as few tiles as they need."""
        by_tile_key: dict[PrefixKey, list[int]] = {}
        for i in self.occupied:
            by_tile_key.setdefault(self._keys[i // self.rows], []).append(i)
        _, rows = dimensions([len(members) for members in by_tile_key.values()], len(self))
        source: list[int] = []
        goes_on: list[bool] = []
        for members in by_tile_key.values():
            padding = -len(members) % rows
            source += members + [members[0]] * padding
            goes_on += [True] * len(members) + [False] * padding
        while len(source) < min(LEAST_ROWS[self._device.type], len(self)):
            source += [source[0]] * rows
            goes_on += [False] * rows
        from_tile = [i // self.rows for i in source[::rows]]
        index = to_device(np.array(source), self._device)
        self.state = self.state.select(index, to_device(np.array(goes_on), self._device))
        self.cache = self.cache.select(index, to_device(np.array(from_tile), self._device))
        self.recorder.select(index)
        slots, keys, prefixes = self.slots, self._keys, self._prefixes
        self._begin(len(from_tile), rows)
        self._keys, self._prefixes = [keys[t] for t in from_tile], [prefixes[t] for t in from_tile]
        for i, (old, kept) in enumerate(zip(source, goes_on, strict=True)):
            if kept:
                self.slots[i] = slots[old]
                self.slots[i].placed_at = 0


def edited_layers(
    edits: Collection[Edit | None], layer_of: list[int], full_encode: list[bool] | None = None
) -> frozenset[int]:
    """Layers of the edits; with full_encode those alone whose edits need the whole dictionary."""
    return frozenset(
        layer_of[edit.row]
        for edit in edits
        if edit is not None and (full_encode is None or edit.mode == "reconstruct" or full_encode[edit.row])
    )
