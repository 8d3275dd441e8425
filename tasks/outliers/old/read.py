"""Reads result files of the old layout and of the new one, event by event, past damage."""

from __future__ import annotations

import re
from typing import Any

from tasks.json_stream.events import Damage, Event, Events, Loss
from tasks.json_stream.source import Source
from tasks.outliers.old.document import MAX_BATCHES, Batch, Document
from tasks.outliers.old.tally import FIRST_VALUES, BatchTally, DimTally, Found, Shares, tally

MAX_POSITION = 2**24
MAX_POINTS = 2**16
MAX_DIM = 10**8 - 1
"""What no model reaches: more means damage, and could take all memory."""

_DIM = re.compile(r"[0-9]{1,8}")
_OF_DOCUMENT, _OF_BATCH = "analysis_summary", "batch_id"
_STARTS = {_OF_DOCUMENT: "", _OF_BATCH: '{"batch_results":['}
"""Behind damage, reading goes on with the next document or batch."""
_FACTS = ("run_dir", "sequences_processed", "timestamp")
_NUMBER = (int, float)


def read(source: Source, shares: Shares | None) -> list[Document]:
    """All documents of a file: one, unless files were put one after the other.

    Args:
        shares: criteria by which batches are classified from their occurrences; None skips the occurrences.
    """
    return _Reader(source, shares).documents()


class _Reader:
    def __init__(self, source: Source, shares: Shares | None) -> None:
        self.source, self.shares = source, shares
        self.events = Events(source.next_piece, _STARTS)
        self.document = Document()
        self.batch: Batch | None = None
        """The one that is being read."""
        self.where = "at the beginning"

    def documents(self) -> list[Document]:
        documents = [self.document]
        while True:
            try:
                self._document()
                next(self.events.stream)  # raises: at the text's end, or because something follows
                raise self.events.damage("more text follows")
            except Damage as damage:
                if damage.end and self.document.closed:
                    break
                found = self._go_on(damage)
            except RecursionError:
                found = self._go_on(self.events.damage("values are nested too deeply"))
            if found is None:
                break
            if found == _OF_DOCUMENT:
                self.document.stop = self.events.byte
                self.document = Document(start=self.events.byte)
                self.where = "at the beginning"
                documents.append(self.document)
        self.document.stop = self.source.text_bytes
        if self.source.broken and self.document.closed:
            self.document.notes.append(f"{self.source.broken}, but the document is whole")
        self.source.drain()
        return documents

    def _go_on(self, damage: Damage) -> str | None:
        """Note the damage, and look for the next batch or document; the key that it begins with."""
        problem = self.source.broken if damage.end and self.source.broken else damage.problem
        if self.batch is not None:
            self.batch.problem = problem
            self.batch = None
        found = self.events.resume()
        self.document.lost.append(Loss(damage.byte, self.events.byte, self.where, problem))
        return found

    def _document(self) -> None:
        events, document = self.events, self.document
        if next(events.stream)[0] != "start_map":
            raise events.damage("this is no JSON object")
        while (key := events.key(allowed=_OF_DOCUMENT)) is not None:
            first = next(events.stream)
            self.where = f"in {key}"
            if key == "all_systematic_outliers":
                self._header(first)
            elif key == "batch_results":
                self._batches(first)
            elif key in ("analysis_summary", "run_config", "format"):
                content = self._typed(events.value(first), dict, key)
                setattr(document, key.removeprefix("analysis_"), content)
            elif key == "points":
                document.points = self._typed(events.value(first), list, key)
            else:
                events.skip(first)
        document.closed = True
        self.where = "behind the document's end"

    def _header(self, first: Event) -> None:
        events, header = self.events, self.document.header
        self._expect(first, "start_array", "all_systematic_outliers")
        while (event := next(events.stream))[0] != "end_array":
            record = self._typed(events.value(event, allowed=_OF_BATCH), dict, "all_systematic_outliers")
            batch_id = record.get("batch_id")
            header.append(
                (batch_id if batch_id is None else self._typed(batch_id, int, "batch_id"), self._found(record))
            )
            self.where = f"in all_systematic_outliers, after {len(header)} records"
        self.document.header_whole = True

    def _batches(self, first: Event) -> None:
        self._expect(first, "start_array", "batch_results")
        while (event := next(self.events.stream))[0] != "end_array":
            self._expect(event, "start_map", "batch_results")
            self._batch()

    def _batch(self) -> None:
        events, document = self.events, self.document
        batch, counted = Batch(id=0), None
        while (key := events.key(allowed=None if batch.id else _OF_BATCH)) is not None:
            first = next(events.stream)
            if key == "batch_id":
                batch.id = self._typed(first[1], int, "batch_id")
                if not 1 <= batch.id <= MAX_BATCHES:
                    raise events.damage(f"batch_id is {batch.id}")
                self._begin(batch)
            elif key in _FACTS:
                batch.facts[key] = events.value(first)
            elif key == "systematic_outliers":
                batch.listed = self._list(first)
            elif key == "outlier_info":
                counted = self._info(batch, first)
            elif key == "outlier_summary":
                summary = self._typed(events.value(first), dict, key)
                self._stats(batch, summary.get("layer_stats"), summary.get("threshold"))
                batch.features = summary.get("total_outlier_features")
            else:
                events.skip(first)
        if not batch.id:
            raise events.damage("a batch has no batch_id")
        batch.whole, self.batch = True, None
        self.where = f"after batch {batch.id}"
        if document.batches.get(batch.id) is not batch:
            document.notes.append(f"batch {batch.id} is there more than once: the first one is used")
        elif counted is not None:
            batch.nan, batch.features = counted.nan, len(counted.dims)
            batch.problem = self._recount(batch, counted)

    def _begin(self, batch: Batch) -> None:
        known = self.document.batches.get(batch.id)
        if known is None or not known.whole:
            self.document.batches[batch.id] = batch
        self.batch = batch
        self.where = f"in batch {batch.id}"

    def _list(self, first: Event) -> list[Found] | None:
        """The batch's own records; None in the new layout, which has them in one place only."""
        records = self._typed(self.events.value(first), list, "systematic_outliers")
        if any(isinstance(record, dict) and set(record) == {"feature_dim"} for record in records):
            return None
        return [self._found(record) for record in records]

    def _info(self, batch: Batch, first: Event) -> BatchTally | None:
        """`outlier_info`: the occurrences, and the statistics of the layers."""
        events, counted = self.events, None
        self._expect(first, "start_map", "outlier_info")
        layer_stats = threshold = None
        while (key := events.key()) is not None:
            first = next(events.stream)
            if key == "feature_outliers" and self.shares is not None:
                self._expect(first, "start_map", key)
                counted = self._feature_outliers()
            elif key == "layer_stats":
                layer_stats = events.value(first)
            elif key == "threshold":
                threshold = first[1]
            else:
                events.skip(first)
        self._stats(batch, layer_stats, threshold)
        return counted

    def _stats(self, batch: Batch, layer_stats: Any, threshold: Any) -> None:
        if isinstance(layer_stats, dict) and all(isinstance(stats, dict) for stats in layer_stats.values()):
            batch.layer_stats = layer_stats
            self.document.names.bits(layer_stats)
        batch.threshold = threshold if isinstance(threshold, _NUMBER) else None

    def _feature_outliers(self) -> BatchTally:
        counted = BatchTally()
        while (key := self.events.key()) is not None:
            if not _DIM.fullmatch(key) or int(key) in counted.dims:
                raise self.events.damage(f"{key!r} is no dimension, or is there twice")
            self._expect(next(self.events.stream), "start_array", "feature_outliers")
            of_dim = self._occurrences(counted)
            if of_dim is not None:
                counted.dims[int(key)] = of_dim
        return counted

    def _occurrences(self, counted: BatchTally) -> DimTally | None:
        """Those of one dimension. This loop sees every one: it is written for speed."""
        stream = self.events.stream
        layers, positions, values = set(), set(), []
        count = negative = 0
        largest, smallest = 0.0, counted.smallest
        for opening, _ in stream:
            if opening == "end_array":
                break
            layer = position = value = key = None
            for kind, content in stream:
                if kind == "map_key":
                    key = content
                elif kind == "end_map":
                    break
                elif key == "value":
                    value = content
                elif key == "seq_pos":
                    position = content
                elif key == "layer":
                    layer = content
                else:
                    key = None
                    break
            if type(position) is not int or type(layer) is not str or type(value) not in _NUMBER or key is None:
                raise self.events.damage("this is no occurrence of an outlier")
            magnitude = abs(value)
            if magnitude > largest:
                largest = magnitude
            if magnitude < smallest:
                smallest = magnitude
            elif magnitude != magnitude:  # NaN
                counted.nan += 1
                continue
            count += 1
            if value < 0:
                negative += 1
            if count <= FIRST_VALUES:
                values.append(value)
            layers.add(layer)
            positions.add(position)
        counted.smallest = smallest
        if not count:
            return None
        if min(positions) < 0 or max(positions) > MAX_POSITION:
            raise self.events.damage("an occurrence is at an impossible position")
        points = self.document.names.bits(layers)
        if len(self.document.names) > MAX_POINTS:
            raise self.events.damage("there are too many layers")
        return tally(values, count, negative, largest, points, positions)

    def _recount(self, batch: Batch, counted: BatchTally) -> str | None:
        """Classify the batch from its occurrences, or say why that can't be done."""
        document = self.document
        shapes = [stats.get("shape") for stats in batch.layer_stats.values()]
        if not shapes or not all(_is_shape(shape) for shape in shapes):
            return "its layer_stats, and so the numbers of layers and positions, are missing"
        sequences, positions, _ = shapes[0]
        watched = document.names.bits(batch.layer_stats)
        if counted.points & ~watched:
            return "it has occurrences in layers that its layer_stats do not have"
        if counted.width > positions:
            return f"it has an occurrence at position {counted.width - 1}, but only {positions} positions"
        if batch.threshold is not None and counted.smallest < batch.threshold:
            return f"it has an occurrence of magnitude {counted.smallest}, below its threshold {batch.threshold}"
        stated = [stats.get("num_outliers") for stats in batch.layer_stats.values()]
        there = counted.occurrences + counted.nan
        if all(isinstance(number, int) for number in stated) and sum(stated) != there:
            return f"it has {there} occurrences, but its layer_stats count {sum(stated)}"
        batch.recounted = counted.systematic(len(shapes), positions, self.shares)
        document.pool.add(counted, watched, sequences, positions)
        return None

    def _found(self, record: Any) -> Found:
        """A record of a systematic dimension."""
        self._typed(record, dict, "a record")
        try:
            return Found(
                dim=_dim(record["feature_dim"]),
                layer_share=_share(record["layer_percentage"]),
                position_share=_share(record["seq_percentage"]),
                max_magnitude=_number(record["max_magnitude"]),
                occurrences=_number(record["total_occurrences"], int),
                points=self._points(record["layers_affected"]),
                first_values=tuple(map(_number, record["example_values"])),
            )
        except (KeyError, TypeError) as error:
            raise self.events.damage(f"this is no record of a systematic dimension: {error!r}") from error

    def _points(self, affected: Any) -> int:
        """Bits: of names in the old layout, of numbers in the new one."""
        if all(isinstance(name, str) for name in affected):
            return self.document.names.bits(affected)
        if not all(isinstance(number, int) and 0 <= number < MAX_POINTS for number in affected):
            raise TypeError("layers_affected holds no points")
        return sum(1 << number for number in set(affected))

    def _typed(self, content: Any, kind: type, what: str) -> Any:
        if not isinstance(content, kind) or (kind is int and isinstance(content, bool)):
            raise self.events.damage(f"{what} is no {_NAMES[kind]}")
        return content

    def _expect(self, event: Event, kind: str, what: str) -> None:
        if event[0] != kind:
            raise self.events.damage(f"{what} is not as it should be")


_NAMES = {dict: "object", list: "list", int: "whole number"}


def _number(value: Any, kind: type | tuple[type, ...] = _NUMBER) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool) or value != value:
        raise TypeError(f"{value!r} is no number")
    return value


def _share(value: Any) -> float:
    if not 0 <= _number(value) <= 1:
        raise TypeError(f"{value!r} is no share")
    return value


def _dim(dim: Any) -> int:
    if isinstance(dim, bool) or not isinstance(dim, int) or not 0 <= dim <= MAX_DIM:
        raise TypeError(f"{dim!r} is no dimension")
    return dim


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape)
