"""Documents, read from files as they are asked for: what comes after the last one wanted is never read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import BadInput
from tasks.text.files import FIELD, Format, TextFile, find
from tasks.text.prose import library_prose
from tasks.text.spec import PROSE, TextSource

Document = Iterator[str]
"""A text in pieces, in order; none when the document is null or empty."""

PIECE = 2**20
"""Characters of a piece. Longer texts are cut before white space, where tokenizers cut too."""
ROWS = 256
"""Of a table, read together."""
NAMES_SHOWN = 20


def open_texts(source: TextSource) -> Iterator[Document]:
    """The documents of a source, in the order of its files. A document must be read before the next one is taken.

    Raises BadInput at once when there are no such files, and on the way for what is wrong in one of them.
    """
    if source.location == PROSE:
        return (_in_pieces(io.StringIO(text)) for text in library_prose())
    if source.location.startswith("embedded:"):
        raise BadInput(FIELD, source.location, "there is no such embedded text", f"use {PROSE}")
    return _documents(find(source), source.column)


def _documents(files: Iterable[TextFile], column: str) -> Iterator[Document]:
    for file in files:
        yield from _READERS[file.format](file, column)


def _text_documents(file: TextFile, column: str) -> Iterator[Document]:
    for where, part in file.parts():
        yield _content(part, where)


def _content(part: AbstractContextManager[BinaryIO], where: str) -> Document:
    with part as stream:
        try:
            yield from _in_pieces(io.TextIOWrapper(stream, "utf-8-sig"))
        except UnicodeDecodeError as error:
            remedy = "convert it, or correct text.format"
            raise BadInput(FIELD, where, f"is not UTF-8 text ({error})", remedy) from error


def _json_documents(file: TextFile, column: str) -> Iterator[Document]:
    for where, part in file.parts():
        with part as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _whole(_json_text(line, column, f"{where}, line {number}"), f"{where}, line {number}")


class _Object(list[tuple[str, Any]]):
    """Of JSON: its names and values as written."""


def _json_text(line: bytes, column: str, where: str) -> str | None:
    try:
        # numbers are none of our business: Python reads no integer of more than 4,300 digits
        record = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_Object, parse_int=len)
    except UnicodeDecodeError as error:
        raise BadInput(
            FIELD, where, f"is not UTF-8 text ({error})", "convert the file, or correct text.format"
        ) from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput(FIELD, where, f"is not JSON ({error})", "write one JSON object a line") from error
    if not isinstance(record, _Object):
        problem = f"is JSON of type {type(record).__name__}, not an object"
        raise BadInput(FIELD, where, problem, "write one JSON object a line")
    names = [name for name, _ in record]
    _check_name(names, column, where)
    text = record[names.index(column)][1]
    if text is not None and not isinstance(text, str):
        raise _not_text(column, where, f"of type {type(text).__name__}")
    return text


def _parquet_documents(file: TextFile, column: str) -> Iterator[Document]:
    with file.raw() as raw:
        row = 0
        try:
            table = pq.ParquetFile(pa.PythonFile(raw, "r"), pre_buffer=False)  # which reads row groups ahead
            _check_column(table.schema_arrow, column, file.url)
            for batch in table.iter_batches(ROWS, columns=[column], use_threads=False):
                # a column `a.b` comes together with the field `b` of a column `a`
                values = batch.column(batch.schema.get_field_index(column))
                for value in values.cast(pa.large_string()):
                    row += 1
                    yield _whole(value.as_py(), f"{file.url}, row {row}")
        except UnicodeDecodeError as error:
            where = f"{file.url}, row {row}"
            raise BadInput(FIELD, where, f"is not UTF-8 text ({error})", "convert the column") from error
        except (pa.ArrowException, OSError) as error:
            problem = f"is not a whole parquet file, or not one of UTF-8 text, after row {row} ({error})"
            raise BadInput(FIELD, file.url, problem, "check the file; as a whole it must not be compressed") from error


def _check_column(schema: pa.Schema, column: str, url: str) -> None:
    _check_name(schema.names, column, url)
    type_ = schema.field(column).type
    values = type_.value_type if pa.types.is_dictionary(type_) else type_
    if not any(is_(values) for is_ in _TEXT_TYPES):
        raise _not_text(column, url, f"of type {type_}")


def _check_name(names: list[str], column: str, where: str) -> None:
    if column not in names:
        there = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
        problem = f"{where} has no such column; it has {there or 'none'}"
        raise BadInput("text.column", column, problem, "name one of these")
    if names.count(column) > 1:
        problem = f"{where} has {names.count(column)} columns of this name"
        raise BadInput("text.column", column, problem, "name them apart, or name another column")


def _not_text(column: str, where: str, what: str) -> BadInput:
    return BadInput("text.column", column, f"in {where} it is {what}, not text", "name a column with text")


def _whole(text: str | None, where: str) -> Document:
    """A document that is in memory already."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:  # "\\ud800" is JSON, and no text
        raise BadInput(FIELD, where, f"is not Unicode text ({error})", "correct or remove it") from error
    return _in_pieces(io.StringIO(text))


def _in_pieces(stream: TextIO) -> Document:
    """What a stream holds, in pieces of at most PIECE characters that begin with white space, if there is any."""
    rest = ""
    while more := stream.read(PIECE - len(rest)):
        rest += more
        if len(rest) == PIECE:
            end = max(rest.rfind(" "), rest.rfind("\n"))
            if end <= 0:
                end = PIECE
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


_TEXT_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,  # how writers of long ago left text
    pa.types.is_large_binary,
)
_READERS: dict[Format, Callable[[TextFile, str], Iterator[Document]]] = {
    "jsonl": _json_documents,
    "parquet": _parquet_documents,
    "text": _text_documents,
}
