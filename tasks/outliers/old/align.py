"""Which batch a record of the list over all batches is of: the old layout does not say, but puts batch after batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.outliers.old.document import Document
from tasks.outliers.old.tally import Found


@dataclass
class Aligned:
    """The list over all batches, taken apart."""

    by_batch: dict[int, list[Found]] = field(default_factory=dict)
    """Of batches that have no list of their own that was read."""
    unassigned: list[Found] = field(default_factory=list)
    """Of one of several such batches: the file does not tell of which."""
    problem: str | None = None
    """Where the list contradicts the batches' own lists; nothing is taken from it then."""


def align(document: Document) -> Aligned:
    """What the list over all batches adds to the batches' own lists."""
    header = [found for _, found in document.header]
    aligned = Aligned()
    at, missing = 0, []
    for batch_id in range(1, max(document.stated_batches or 0, *document.batches, 0) + 1):
        batch = document.batches.get(batch_id)
        if batch is None or batch.listed is None:
            missing.append(batch_id)
        elif batch.listed:
            place = _find(header, batch.listed, at, len(header) if missing else at)
            if place is None:
                return _contradiction(document, aligned, batch_id, len(header) - at)
            _assign(aligned, missing, header[at:place])
            at, missing = place + len(batch.listed), []
    if at < len(header) and not missing:
        if document.stated_batches:
            return Aligned(problem=f"all_systematic_outliers has {len(header) - at} records more than the batches")
        aligned.unassigned.extend(header[at:])  # nobody knows how many batches there were
    elif document.header_whole or at < len(header):
        _assign(aligned, missing, header[at:])
    return aligned


def _contradiction(document: Document, aligned: Aligned, batch_id: int, left: int) -> Aligned:
    if document.header_whole:
        return Aligned(problem=f"all_systematic_outliers does not hold the list of batch {batch_id} in its place")
    if left and len(document.batches[batch_id].listed) <= left:
        aligned.problem = f"it is not clear of which batch {left} records of all_systematic_outliers are: left out"
    return aligned  # else the list was cut off before this batch


def _find(header: Sequence[Found], listed: Sequence[Found], start: int, last: int) -> int | None:
    """Where `listed` begins in `header`, between `start` and `last`."""
    n = len(listed)
    for place in range(start, min(last, len(header) - n) + 1):
        if header[place] == listed[0] and list(header[place : place + n]) == list(listed):
            return place
    return None


def _assign(aligned: Aligned, missing: Sequence[int], records: Sequence[Found]) -> None:
    if len(missing) == 1 or not records:
        aligned.by_batch |= {batch_id: list(records) for batch_id in missing}
    else:
        aligned.unassigned.extend(records)
