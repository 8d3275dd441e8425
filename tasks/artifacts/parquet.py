"""Tables as parquet files that depend on nothing but the table.

Text is dictionary-encoded and compressed. Dense columns (floats, binary) are written plainly: a dictionary of
values that never repeat costs ten times the writing time and saves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 128 * 1024
PANDAS_METADATA = b"pandas"


def serialize(table: pa.Table) -> pa.Buffer:
    """``table`` as a parquet file in memory."""
    table = _without_pandas(table)
    leaves = [leaf for field in table.schema for leaf in _leaves(field.name, field.type)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression={path: "none" if pa.types.is_fixed_size_binary(type_) else "zstd" for path, type_ in leaves},
        use_dictionary=[path for path, type_ in leaves if _repeats(type_)],
        write_statistics=[path for path, type_ in leaves if not _is_bytes(type_)],
    )
    return sink.getvalue()


def deserialize(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a parquet file, or the named columns of it in that order.

    Raises:
        KeyError: there is no such column.
    """
    file = pq.ParquetFile(pa.BufferReader(data))
    if columns is None:
        return file.read()
    names = file.schema_arrow.names
    if unknown := [name for name in columns if name not in names]:
        raise KeyError(f"no column {', '.join(map(repr, unknown))}; there are {', '.join(names)}")
    return file.read(columns=list(columns)).select(list(columns))


def _leaves(path: str, type_: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Paths of the parquet columns that hold an Arrow column, with their types."""
    if pa.types.is_map(type_):
        yield from _leaves(f"{path}.key_value.key", type_.key_type)
        yield from _leaves(f"{path}.key_value.value", type_.item_type)
    elif pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        yield from _leaves(f"{path}.list.element", type_.value_type)
    elif pa.types.is_struct(type_):
        for field in type_:
            yield from _leaves(f"{path}.{field.name}", field.type)
    else:
        yield path, type_


def _repeats(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_dictionary(type_)


def _is_bytes(type_: pa.DataType) -> bool:
    return pa.types.is_fixed_size_binary(type_) or pa.types.is_binary(type_) or pa.types.is_large_binary(type_)


def _without_pandas(table: pa.Table) -> pa.Table:
    """pandas leaves its version in the metadata; a table's bytes must not depend on it."""
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != PANDAS_METADATA}
    return table.replace_schema_metadata(metadata or None)
