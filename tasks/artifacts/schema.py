"""Declared tables: what a table that passes between shards is called, and its columns, each with a type and a meaning.

A table is declared once, in the room of its job. Whoever writes it makes it from the declaration or checks it against
it, whoever reads it asks the declaration for it, and its page of the documentation is made from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from tasks.artifacts.shard import Outputs


@dataclass(frozen=True)
class Column:
    name: str
    type: pa.DataType
    meaning: str
    """A sentence for the documentation, units included."""


@dataclass(frozen=True)
class TableSchema:
    """One table: `meaning` says what a row is."""

    name: str
    meaning: str
    columns: tuple[Column, ...]

    @cached_property
    def arrow(self) -> pa.Schema:
        return pa.schema([(column.name, column.type) for column in self.columns])

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def from_rows(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """The table of these rows; what they hold beyond the declared columns is left out."""
        return pa.Table.from_pylist(list(rows), schema=self.arrow)

    def from_columns(self, columns: Mapping[str, Any]) -> pa.Table:
        """The table of these columns (arrays of any kind), in the declared order and types.

        Raises:
            KeyError: a column is missing.
        """
        return pa.Table.from_pydict({name: columns[name] for name in self.names}, schema=self.arrow)

    def checked(self, table: pa.Table) -> pa.Table:
        """``table`` as it is.

        Raises:
            TypeError: its columns are not the declared ones.
        """
        if not table.schema.equals(self.arrow):
            raise TypeError(f"table {self.name!r} is declared as\n{self.arrow}\nand is\n{table.schema}")
        return table

    def read(self, outputs: Outputs, columns: Sequence[str] | None = None) -> pa.Table:
        """The table of a shard; with ``columns``, only these, in that order.

        Raises:
            KeyError: there is no such table, or a column is not declared or not there.
            TypeError: a column is stored with another type than the declared one.
        """
        wanted = self.names if columns is None else columns
        if unknown := [name for name in wanted if name not in self.names]:
            raise KeyError(f"table {self.name!r} has no column {', '.join(unknown)}; it has {', '.join(self.names)}")
        table = outputs.table(self.name, wanted)
        for stored in table.schema:
            declared = self.arrow.field(stored.name).type
            if stored.type != declared:
                raise TypeError(f"{self.name}.{stored.name} is declared as {declared} and stored as {stored.type}")
        return table


def markdown(title: str, tables: Iterable[TableSchema]) -> str:
    """A page that lists tables and their columns."""
    lines = [f"# {title}", ""]
    for table in tables:
        lines += [f"## {table.name}", "", table.meaning, "", "| column | type | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{column.name}` | {column.type} | {column.meaning} |" for column in table.columns]
        lines.append("")
    return "\n".join(lines)
