"""Which trial goes where: trials queue by prefix, and rows that share a prefix stand in tiles.

A tile's rows all have one prefix, so a free row takes the next trial of that prefix; a tile that is empty takes the
prefix with the most trials waiting for each tile that already serves it.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterable, Sequence

from tasks.engines.interface import Edit, Trial

MOST_ROWS = 32
"""Rows of a tile at most. More rows would read a prefix less often, but it is little beside the weights by then."""
LEAST_ROWS = {"cpu": 8, "cuda": 1}
"""Rows of a batch at least, with a trial or without: a CPU multiplies fewer rows by another routine, whose sums round
otherwise, and how many rows there are must not show in a result."""
WASTE = 1.1
"""Smaller tiles are taken when larger ones would make more than this many rows for each trial."""

PrefixKey = tuple[tuple[int, ...], Edit | None]


def prefix_key(prompt: tuple[int, ...], edit: Edit | None) -> PrefixKey:
    """What decides a prefix's keys and values: only an edit of scope `all` touches them."""
    return prompt, edit if edit is not None and edit.scope == "all" else None


def cell_of(trial: Trial) -> tuple:
    """The trial but for its id and seed: trials of one cell are equal in this."""
    return trial.prompt, trial.edit, trial.max_new_tokens, trial.temperature, trial.top_p


class TrialQueue:
    """The trials of a call: waiting by prefix in the order given, or taken and not yet finished."""

    def __init__(self, trials: Iterable[Trial]):
        self.unfinished: dict[int, Trial] = {}
        """Every trial that has no result yet, by id, in the order given."""
        for trial in trials:
            if trial.id in self.unfinished:
                raise ValueError(f"trial id {trial.id} is given twice; ids must be unique within a call")
            self.unfinished[trial.id] = trial
        self.restart()

    def restart(self) -> None:
        """Every unfinished trial waits again."""
        self._waiting: dict[PrefixKey, deque[Trial]] = {}
        for trial in self.unfinished.values():
            self._waiting.setdefault(prefix_key(trial.prompt, trial.edit), deque()).append(trial)

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def counts(self) -> list[int]:
        """Trials waiting for each prefix."""
        return [len(trials) for trials in self._waiting.values()]

    def has(self, key: PrefixKey) -> bool:
        return key in self._waiting

    def take(self, key: PrefixKey, n: int) -> list[Trial]:
        """At most n next trials of a prefix."""
        waiting = self._waiting.get(key, ())
        taken = [waiting.popleft() for _ in range(min(n, len(waiting)))]
        if taken and not waiting:
            del self._waiting[key]
        return taken

    def next_cell(self) -> int:
        """How many trials wait together at the front of the first prefix that differ in their seeds alone."""
        waiting = next(iter(self._waiting.values()))
        cell = cell_of(waiting[0])
        return sum(1 for _ in itertools.takewhile(lambda trial: cell_of(trial) == cell, waiting))

    def take_cell(self, n: int) -> list[Trial]:
        """The next n of these, which may be fewer than all."""
        return self.take(next(iter(self._waiting)), n)

    def neediest(self, served: Iterable[PrefixKey]) -> PrefixKey | None:
        """The prefix with the most trials per tile, if it got one more; `served`: the prefixes of other tiles."""
        tiles = Counter(served)
        return max(self._waiting, key=lambda key: len(self._waiting[key]) / (tiles[key] + 1), default=None)

    def finish(self, trial: Trial) -> None:
        """The trial has its result."""
        del self.unfinished[trial.id]


def dimensions(counts: Sequence[int], most: int) -> tuple[int, int]:
    """Tiles and rows of each, for prefixes with so many trials: at most `most` rows in all, and no more than needed.

    Rows of a tile are as many as they can be without leaving too many of them empty.
    """
    widest = min(MOST_ROWS, max(counts), most if len(counts) == 1 else max(1, most // 2))
    rows = widest
    while rows > 1 and sum(-(-n // rows) * rows for n in counts) > WASTE * sum(counts):
        rows -= 1
    needed = sum(-(-n // rows) for n in counts)
    return min(max(1, most // rows), needed), rows
