"""What has to be said about a conversion: what was lost, and where the old file contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tasks.outliers.old.align import Aligned
from tasks.outliers.old.differences import LARGEST, SHOWN, Pair, describe, differences, fields
from tasks.outliers.old.document import Document
from tasks.outliers.old.tally import Found
from tasks.outliers.results_layout import Record

_HOW = {
    "list": "its occurrences could not be read ({}): its records are those of its own list systematic_outliers",
    "header": "it could not be read ({}): its records are those of all_systematic_outliers",
    "nothing": "it could not be read ({}), and it is not clear which records are its own",
}
"""Where a batch's records are from, if not from its occurrences."""


@dataclass
class Said:
    """What has to be said about a conversion."""

    lost: list[str] = field(default_factory=list)
    """What could not be read."""
    differing: list[str] = field(default_factory=list)
    """Where the file contradicts itself: its occurrences tell something else than its lists."""
    notes: list[str] = field(default_factory=list)


def say_all(
    document: Document,
    others: Sequence[Document],
    aligned: Aligned,
    origins: Mapping[int, tuple[str, list[Found]]],
    records: Sequence[Record],
) -> Said:
    """What has to be said about the conversion of `document`.

    Args:
        others: further documents in the same file, which were left out.
        origins: of each batch, where its records are from, and these.
        records: all of them, as they are written.
    """
    said = Said(lost=_lost(document, aligned, origins), differing=_recount_differences(document))
    said.notes += document.notes
    for other in others:
        said.notes.append(f"another document in the same file, bytes {other.start} to {other.stop}, was left out")
    for batch in document.batches.values():
        if batch.nan:
            said.notes.append(f"batch {batch.id}: {batch.nan} occurrences are NaN, which is no outlier: left out")
    infinite = sum(record.max_magnitude == LARGEST for record in records)
    if infinite:
        said.notes.append(f"{infinite} records have an infinity, which is written as {LARGEST}")
    if aligned.problem:
        (said.differing if document.header_whole else said.lost).append(aligned.problem)
    stated = document.summary.get("total_systematic_outliers")
    if not said.lost and stated != len(document.header):
        listed = f"all_systematic_outliers has {len(document.header)}"
        said.differing.append(f"analysis_summary counts {stated} systematic outliers, but {listed}")
    return said


def _lost(document: Document, aligned: Aligned, origins: Mapping[int, tuple[str, list[Found]]]) -> list[str]:
    lines = [loss.describe() for loss in document.lost]
    if not document.header_whole:
        lines.append(f"all_systematic_outliers was read up to its record {len(document.header)} only")
    for batch_id, (origin, found) in origins.items():
        batch = document.batches.get(batch_id)
        if origin == "occurrences" or (origin == "list" and batch.whole and batch.problem is None):
            continue  # read as it is: a layout between the old and the new one has no occurrences
        problem = batch.problem if batch and batch.problem else "it was not found"
        lines.append(f"batch {batch_id}: {_HOW[origin].format(problem)} ({len(found)} records)")
    absent = (document.stated_batches or 0) - len(origins)
    if absent > 0:
        lines.append(f"{absent} of {document.stated_batches} batches were not found")
    if aligned.unassigned:
        lines.append(f"{len(aligned.unassigned)} records are of batches that were not found, it is not clear of which")
    return lines


def _recount_differences(document: Document) -> list[str]:
    """Where the occurrences of a batch tell something else than the batch's own list."""
    counted: dict[Pair, dict[str, Any]] = {}
    listed: dict[Pair, dict[str, Any]] = {}
    for batch in document.batches.values():
        if batch.recounted is not None and batch.listed is not None and batch.recounted != batch.listed:
            for side, records in ((counted, batch.recounted), (listed, batch.listed)):
                side |= {(batch.id, f.dim, 0): fields(f, document.names.of(f.points)) for f in records}
    found = differences(counted, listed)
    lines = [describe(difference, "the occurrences", "the list") for difference in islice(found, SHOWN)]
    more = sum(1 for _ in found)
    return [*lines, *([f"and {more} more such differences"] if more else [])]
