"""What was read of a result file, and what was not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tasks.json_stream.events import Loss
from tasks.outliers.old.tally import Found, Names, Pool

MAX_BATCHES = 10**5
"""More than any run had: a larger number means damage."""


@dataclass
class Batch:
    """An entry of `batch_results`."""

    id: int
    facts: dict[str, Any] = field(default_factory=dict)
    """run_dir, sequences_processed, timestamp"""
    listed: list[Found] | None = None
    """Its own list `systematic_outliers`, if that was read whole and holds whole records."""
    recounted: list[Found] | None = None
    """The same from its occurrences, if these were read whole and can be trusted."""
    whole: bool = False
    problem: str | None = None
    """Why it was not recounted, if it has occurrences."""
    nan: int = 0
    """Occurrences left out because their value is NaN."""
    features: int | None = None
    """Dimensions with any occurrence."""
    threshold: float | None = None
    layer_stats: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Document:
    """A result file's content."""

    start: int = 0
    stop: int = 0
    """Bytes of the text"""
    names: Names = field(default_factory=Names)
    closed: bool = False
    """Whether its end was read."""
    format: dict[str, Any] | None = None
    """Of a file in the new layout."""
    summary: dict[str, Any] = field(default_factory=dict)
    run_config: dict[str, Any] = field(default_factory=dict)
    points: list[str] | None = None
    """Names, where the file lists them."""
    header: list[tuple[int | None, Found]] = field(default_factory=list)
    """`all_systematic_outliers`, with the records' own batch ids (which the old layout does not have)."""
    header_whole: bool = False
    batches: dict[int, Batch] = field(default_factory=dict)
    pool: Pool = field(default_factory=Pool)
    lost: list[Loss] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def stated_batches(self) -> int | None:
        """How many batches there were, as the file's summary has it."""
        stated = self.summary.get("total_batches")
        return stated if isinstance(stated, int) and 0 <= stated <= MAX_BATCHES else None

    @property
    def is_result(self) -> bool:
        """Whether there is anything of a result in it."""
        return bool(self.batches or self.header or (self.closed and self.header_whole))

    @property
    def rank(self) -> tuple[int, int, int]:
        """To choose the best of several."""
        batches = self.batches.values()
        return sum(b.recounted is not None for b in batches), sum(b.whole for b in batches), len(self.header)
