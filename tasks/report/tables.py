"""Small helpers to read a study's tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from tasks.artifacts.schema import TableSchema
from tasks.artifacts.shard import Shard

Row = dict[str, Any]


def tables(shards: Iterable[Shard], schema: TableSchema, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The table of each shard that has one: a stage that had nothing to do wrote none."""
    return (schema.read(shard, columns) for shard in shards if schema.name in shard)


def read(shards: Iterable[Shard], schema: TableSchema, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a table of several shards, in order."""
    for table in tables(shards, schema, columns):
        yield from rows(table)


def rows(table: pa.Table) -> list[Row]:
    """Rows as dictionaries, with None for nulls and NaN."""
    return [{k: None if _nan(v) else v for k, v in row.items()} for row in table.to_pylist()]


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
