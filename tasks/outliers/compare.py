"""``python -m tasks.outliers compare``: do two result files, of the old layout or the new, say the same?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tasks.errors import BadInput
from tasks.json_stream.source import open_source
from tasks.outliers.old.align import align
from tasks.outliers.old.differences import SHOWN, Difference, Pair, differences, fields
from tasks.outliers.old.document import Document
from tasks.outliers.old.read import read
from tasks.outliers.old.tally import Found

SIZE_RATIO = 0.01
"""The new layout takes less than this share of the old one."""
WIDEST = 40
"""Characters of a cell."""


@dataclass
class Side:
    """The classification that a file holds."""

    location: str
    layout: str
    bytes: int
    """Of its text, decompressed"""
    records: dict[Pair, dict[str, Any]] = field(default_factory=dict)
    unassigned: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """(dimension, record) of batches that a damaged file does not tell, in order"""
    problems: list[str] = field(default_factory=list)
    """What could not be read."""

    @property
    def dims(self) -> set[int]:
        return {dim for _, dim, _ in self.records} | {dim for dim, _ in self.unassigned}

    @property
    def count(self) -> int:
        return len(self.records) + len(self.unassigned)


@dataclass
class Comparison:
    """Two files, and in what they differ."""

    old: Side
    new: Side
    differences: list[Difference]
    """The first `SHOWN`."""
    count: int
    """Of all differences."""
    size_ratio: float | None
    """Bytes of the new one / bytes of the old one, where that is their layout."""
    limit: float

    @property
    def same(self) -> bool:
        return not self.count and self.old.dims == self.new.dims and not self.too_large

    @property
    def too_large(self) -> bool:
        return self.size_ratio is not None and self.size_ratio >= self.limit

    def lines(self) -> list[str]:
        """The result for people to read."""
        lines = []
        for name, side in (("OLD", self.old), ("NEW", self.new)):
            lines.append(
                f"{name}: {side.location}: {side.layout} layout, {side.bytes / 1e6:.1f} MB, {side.count} records of "
                f"{len(side.dims)} systematic dimensions"
            )
            lines += [f"  damaged: {problem}" for problem in side.problems]
        only_old, only_new = self.old.dims - self.new.dims, self.new.dims - self.old.dims
        lines.append(f"dimensions: {'the same' if self.old.dims == self.new.dims else 'not the same'}")
        lines += [f"  in {name} only: {_some(dims)}" for name, dims in (("OLD", only_old), ("NEW", only_new)) if dims]
        lines.append(f"records: {'the same' if not self.count else f'{self.count} differences'}")
        lines += [f"  {line}" for line in _table(self.differences)]
        if self.count > len(self.differences):
            lines.append(f"  and {self.count - len(self.differences)} more")
        if self.size_ratio is not None:
            wanted = f"{'not ' if self.too_large else ''}below {self.limit:.4g}"
            lines.append(f"size: NEW is {self.size_ratio:.3g} of OLD, {wanted}")
        return lines


def compare(old: str, new: str, say: Callable[[str], None], *, limit: float = SIZE_RATIO) -> Comparison:
    """Compare the records of two files batch by batch: dimensions, shares, magnitudes, counts, points, examples.

    Args:
        old, new: local paths or URLs that fsspec speaks; may be compressed by gzip.
        say: is told now and then how far the reading is.
        limit: for the size of a file in the new layout, against one in the old.

    Raises:
        BadInput: a file is not there, or holds no result.
        TransientError: a fault of the store did not pass.
    """
    one, other = _read(old, "OLD", say), _read(new, "NEW", say)
    _settle(one, other)
    _settle(other, one)
    for side in (one, other):
        counts: dict[int, int] = {}
        for dim, record in side.unassigned:
            counts[dim] = counts.get(dim, 0) + 1
            side.records[None, dim, counts[dim]] = record
        side.unassigned = []
    found = differences(one.records, other.records)
    shown = list(islice(found, SHOWN))
    count = len(shown) + sum(1 for _ in found)
    sized = one.layout == "old" and other.layout == "new" and one.bytes > 0
    return Comparison(one, other, shown, count, other.bytes / one.bytes if sized else None, limit)


def _read(location: str, name: str, say: Callable[[str], None]) -> Side:
    with open_source(location, name, say) as source:
        document = max(read(source, None), key=lambda d: d.rank)
    if not document.is_result:
        problem = f" ({document.lost[0].problem} at byte {document.lost[0].start})" if document.lost else ""
        remedy = "give a final_analysis_results.json, of the old layout or the new"
        raise BadInput(name, location, f"holds no result that can be read{problem}", remedy)
    side = Side(location, "old" if document.format is None else "new", source.text_bytes)
    side.problems = [loss.describe() for loss in document.lost]
    _fill(side, document)
    return side


def _fill(side: Side, document: Document) -> None:
    if document.format is not None:
        by_batch = document.header
        points = document.points or []
    else:
        aligned = align(document)
        listed = {batch.id: batch.listed for batch in document.batches.values() if batch.listed is not None}
        by_batch = [(i, found) for i, records in (listed | aligned.by_batch).items() for found in records]
        by_batch += [(None, found) for found in aligned.unassigned]
        points = list(document.names)
        if aligned.problem:
            side.problems.append(aligned.problem)
    for batch, found in by_batch:
        record = fields(found, _names(found, points))
        if batch is None:
            side.unassigned.append((found.dim, record))
        else:
            side.records[batch, found.dim, 0] = record


def _names(found: Found, points: list[str]) -> Iterable[str]:
    return (name for i, name in enumerate(points) if found.points >> i & 1)


def _settle(side: Side, other: Side) -> None:
    """Give a record whose batch is not known the first batch that has it on the other side and not yet on this one."""
    free: dict[int, list[Pair]] = {}
    for pair in sorted(other.records.keys() - side.records.keys(), reverse=True):
        free.setdefault(pair[1], []).append(pair)
    left = []
    for dim, record in side.unassigned:
        if free.get(dim):
            side.records[free[dim].pop()] = record
        else:
            left.append((dim, record))
    side.unassigned = left


def _some(dims: Iterable[int]) -> str:
    ordered = sorted(dims)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(map(str, ordered[:SHOWN])) + more


def _table(found: list[Difference]) -> list[str]:
    if not found:
        return []
    rows = [("batch", "dimension", "field", "OLD", "NEW")]
    for (batch, dim, _), name, a, b in found:
        rows.append(("?" if batch is None else str(batch), str(dim), name, *_cells(name, a, b)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cells(name: str, a: Any, b: Any) -> tuple[str, str]:
    if name == "systematic":
        return ("yes", "no") if a else ("no", "yes")
    if isinstance(a, frozenset):
        return tuple(_cut(f"{len(x)} points, only here: {sorted(x - y)}") for x, y in ((a, b), (b, a)))
    if isinstance(a, tuple):
        return tuple(_cut(", ".join(map(str, values))) for values in (a, b))
    return str(a), str(b)


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
