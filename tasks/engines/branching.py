"""Trials that agree so far are computed once.

The trials of a *cell* (one prompt, one edit, one way of sampling) differ in their seeds alone, so the model reads the
same tokens for all of them until they draw different ones. A *branch* is a row of the batch that stands for all trials
of a cell with the same tokens so far:

1. a cell enters the batch as one branch with all its trials;
2. a pass reads one token of each branch, and each trial draws its next token with its own random number;
3. trials of a branch that drew the same token go on together, so a branch may become several, each with a copy of the
   keys, values and captures up to here;
4. a branch whose token ends it gives the same result to each of its trials.

Every trial gets what it would get in a row of its own. The host looks at each token, which costs nothing on a CPU; on a
GPU it would make each pass wait, so there each trial has its row (`batch`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.engines.attention import TiledCache
from tasks.engines.batch import Batch, Slot
from tasks.engines.interface import Trial
from tasks.engines.prefixes import EditedPrefix
from tasks.engines.sampling import uniforms
from tasks.engines.state import BatchState
from tasks.engines.tiles import LEAST_ROWS, WASTE, PrefixKey, TrialQueue, prefix_key

WORTH_A_REFILL = 4
"""New cells enter when the trials in flight leave this part of the batch empty, 1 / WORTH_A_REFILL, or a whole cell."""
TILE_ROWS = 8
"""Rows of a tile at most: a prefix has one branch at first."""
FULL_ENOUGH = 0.75
"""Rows are laid out anew when fewer than this share of them are in use."""


def tile_rows(counts: Sequence[int]) -> int:
    """Rows of a tile for prefixes with so many trials: as many as they can be without leaving too many empty."""
    return next(n for n in range(TILE_ROWS, 0, -1) if sum(-(-k // n) * n for k in counts) <= WASTE * sum(counts))


def branches(counts: Sequence[int], most: int) -> tuple[int, int]:
    """Tiles and rows of each when each of `most` trials in flight has a branch of its own."""
    rows = tile_rows(counts)
    return -(-min(most, sum(counts)) // rows), rows


@dataclass(eq=False, kw_only=True)
class Branch(Slot):
    """Trials of one cell with the same tokens so far. `trial` is one of them."""

    trials: list[Trial]
    draws: np.ndarray
    """[number of trials, S] float64: each trial's random number for each token."""

    @classmethod
    def of(cls, trials: list[Trial], placed_at: int, capacity: int) -> Branch:
        draws = np.zeros((len(trials), capacity))
        for i, trial in enumerate(trials):
            draws[i, : trial.max_new_tokens] = uniforms(trial.seed, trial.max_new_tokens)
        return cls(trial=trials[0], placed_at=placed_at, trials=trials, draws=draws)

    def split(self, tokens: np.ndarray) -> list[tuple[int, Branch]]:
        """(token, the branch of the trials that drew it), for the token [number of trials] that each drew."""
        if (tokens == tokens[0]).all():
            return [(int(tokens[0]), self)]
        parts = []
        for token in dict.fromkeys(tokens.tolist()):
            members = np.flatnonzero(tokens == token)
            trials = [self.trials[i] for i in members]
            parts.append(
                (token, Branch(trials[0], self.placed_at, self.steps, trials=trials, draws=self.draws[members]))
            )
        return parts


class BranchingBatch(Batch):
    """A batch whose rows are branches: as many as there are, in tiles of a size that follows from the trials alone, so
    that neither the batch size nor how far the trials are shows in a result.

    most: trials in flight, each of which may come to need a row of its own. counts: trials of each prefix.
    """

    def __init__(self, most: int, counts: Sequence[int], *args, **kwargs):
        super().__init__(1, tile_rows(counts), *args, **kwargs)
        self._most = most

    @property
    def running(self) -> list[Branch]:
        return [slot for slot in self.slots if slot is not None]

    def refill(self, queue: TrialQueue, prefix_of: Callable[[PrefixKey], EditedPrefix]) -> None:
        """Take cells while there is room, whole ones where they fit."""
        new: list[Branch] = []
        room = self._most - sum(len(branch.trials) for branch in self.running)
        while queue.waiting and room:
            wanted = queue.next_cell()
            if wanted > room and room * WORTH_A_REFILL < self._most:
                break
            trials = queue.take_cell(min(wanted, room))
            new.append(Branch.of(trials, self.passes, self.cache.capacity))
            room -= len(trials)
        thin = LEAST_ROWS[self._device.type] < len(self) and len(self.occupied) < FULL_ENOUGH * len(self)
        if new or thin:
            self._lay_out([(row, self.slots[row]) for row in self.occupied], new, prefix_of)

    def drawing(self) -> tuple[Tensor, Tensor]:
        """For every trial in flight, by branch: its row [N] int64 and its random number for the coming token [N]."""
        rows = self.occupied
        row = np.repeat(rows, [len(branch.trials) for branch in self.running])
        uniform = np.concatenate([branch.draws[:, branch.steps] for branch in self.running])
        return torch.from_numpy(row), torch.from_numpy(uniform)

    def branch(self, drawn: Tensor, end_tokens: Tensor) -> list[int]:
        """Split the branches by the tokens drawn [N] (in the order of `drawing`), and return the rows that ended."""
        ends = np.cumsum([len(branch.trials) for branch in self.running])[:-1]
        parts = [
            (row, token, part)
            for row, branch, tokens in zip(self.occupied, self.running, np.split(drawn.numpy(), ends), strict=True)
            for token, part in branch.split(tokens)
        ]
        if len(parts) > len(self.occupied):
            self._lay_out([(row, part) for row, _, part in parts])
        token_of = {part: token for _, token, part in parts}
        tokens = [0 if slot is None else token_of[slot] for slot in self.slots]
        self.state.append(torch.tensor(tokens), end_tokens)
        self.passed()
        live = self.state.live.tolist()
        return [row for row in self.occupied if not live[row]]

    def take(self, rows: list[int]) -> tuple[list[list[Trial]], dict[str, Tensor]]:
        """The trials of ended branches, and what the device holds of each branch."""
        trials = [self.slots[row].trials for row in rows]
        return trials, self.free(rows)[1] if rows else {}

    def _lay_out(
        self,
        going_on: Sequence[tuple[int, Branch]],
        new: Sequence[Branch] = (),
        prefix_of: Callable[[PrefixKey], EditedPrefix] | None = None,
    ) -> None:
        """Give each branch a row, in as few tiles as needed: those that go on (from the row given), and new ones."""
        by_key: dict[PrefixKey, list[tuple[int | None, Branch]]] = {}
        for row, branch in [*going_on, *((None, branch) for branch in new)]:
            by_key.setdefault(prefix_key(branch.trial.prompt, branch.trial.edit), []).append((row, branch))
        rows = self.rows
        tile_keys = [key for key, members in by_key.items() for _ in range(-(-len(members) // rows))]
        least = LEAST_ROWS[self._device.type]
        while len(tile_keys) * rows % least:
            tile_keys.append(tile_keys[-1])
        places: list[tuple[int | None, Branch] | None] = []
        for members in by_key.values():
            places += [*members, *[None] * (-len(members) % rows)]
        places += [None] * (len(tile_keys) * rows - len(places))

        had = dict(zip(self._keys, range(len(self._keys)), strict=True))
        prefixes = dict(zip(self._keys, self._prefixes, strict=True))
        if going_on:
            source = torch.tensor([place[0] if place and place[0] is not None else 0 for place in places])
            goes_on = torch.tensor([place is not None and place[0] is not None for place in places])
            self.state = self.state.select(source, goes_on)
            self.cache = self.cache.select(source, torch.tensor([had.get(key, 0) for key in tile_keys]))
            self.recorder.select(source)
        else:
            had = {}
            capacity = self.cache.capacity
            self.cache = TiledCache(
                self._n_layers, len(tile_keys), rows, self.cache.prefix_capacity, capacity, self._device
            )
            self.state = BatchState.empty(len(places), capacity, self._device)
            self.recorder.allocate(len(places), capacity)
        passes = self.passes
        self._begin(len(tile_keys), rows)
        self.passes = passes
        for tile, key in enumerate(tile_keys):
            if key not in had:
                prefixes[key] = prefix_of(key)
                self.cache.place(tile, prefixes[key].prefix)
            self._keys[tile], self._prefixes[tile] = key, prefixes[key]
        self.slots = [place and place[1] for place in places]
        begun = [i for i, place in enumerate(places) if place is not None and place[0] is None]
        if begun:
            trials = [self.slots[i].trial for i in begun]
            self.state.place(begun, trials, [self._prefixes[i // rows].edits_applied for i in begun])
