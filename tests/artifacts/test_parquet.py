"""Tables: what comes back is what went in, in files that depend on nothing else."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.artifacts.parquet import ROW_GROUP_ROWS, deserialize, serialize

TYPES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.float16(): st.floats(allow_nan=False, width=16).map(np.float16),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    pa.binary(): st.binary(max_size=6),
    pa.binary(4): st.binary(min_size=4, max_size=4),
    pa.list_(pa.int32()): st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    pa.list_(pa.field("element", pa.string())): st.lists(st.text("ab", max_size=3), max_size=3),
    pa.struct([("a", pa.string()), ("b", pa.float64())]): st.fixed_dictionaries(
        {"a": st.text("ab", max_size=2), "b": st.floats(allow_nan=False)}
    ),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    types = draw(st.lists(st.sampled_from(list(TYPES)), min_size=1, max_size=5))
    rows = draw(st.integers(0, 5))
    columns = {}
    for i, type_ in enumerate(types):
        values = draw(st.lists(st.none() | TYPES[type_], min_size=rows, max_size=rows))
        columns[f"c{i}"] = pa.array(values, type_)
    return pa.table(columns)


@given(tables())
def test_round_trip(table: pa.Table) -> None:
    data = serialize(table).to_pybytes()
    assert deserialize(data).equals(table)
    assert pq.read_table(io.BytesIO(data)).equals(table)
    assert serialize(table).to_pybytes() == data
    names = list(reversed(table.column_names))
    assert deserialize(data, names).equals(table.select(names))


def test_no_rows_keep_their_schema() -> None:
    schema = pa.schema({"text": pa.string(), "x": pa.float16(), "tokens": pa.binary(), "v": pa.binary(8)})
    assert deserialize(serialize(schema.empty_table()).to_pybytes()).schema == schema


def test_metadata_is_kept_but_that_of_pandas() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0], "text": ["a", "b"]})
    table = pa.Table.from_pandas(frame, preserve_index=False)
    plain = pa.table({"x": table["x"], "text": table["text"]})
    assert serialize(table).equals(serialize(plain))
    described = plain.replace_schema_metadata({"unit": "raw_residual", **(table.schema.metadata or {})})
    assert deserialize(serialize(described).to_pybytes()).schema.metadata == {b"unit": b"raw_residual"}


def test_slices_are_written_like_copies() -> None:
    table = pa.table({"x": range(100), "text": [str(i) for i in range(100)]})
    copied = pa.table({name: table[name].slice(10, 20).to_pylist() for name in table.column_names})
    assert serialize(table.slice(10, 20)).equals(serialize(copied))
    pieces = pa.concat_tables([table.slice(0, 30), table.slice(30)])
    assert serialize(pieces).equals(serialize(table))


def test_projection_names_what_is_missing() -> None:
    data = serialize(pa.table({"a": [1], "b": [2]})).to_pybytes()
    assert deserialize(data, ["b"]).column_names == ["b"]
    assert deserialize(data, []).num_columns == 0
    with pytest.raises(KeyError, match="no column 'c'; there are a, b"):
        deserialize(data, ["a", "c"])


def test_text_is_packed_and_dense_columns_are_plain() -> None:
    rows = 2000
    table = pa.table(
        {
            "text": ["the same text"] * rows,
            "tokens": pa.array([b"\0\1"] * rows, pa.binary()),
            "vector": pa.array([bytes(8)] * rows, pa.binary(8)),
            "value": np.linspace(0, 1, rows),
        }
    )
    group = pq.ParquetFile(pa.BufferReader(serialize(table))).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    dictionary = {name: "RLE_DICTIONARY" in column.encodings for name, column in columns.items()}
    assert dictionary == {"text": True, "tokens": False, "vector": False, "value": False}
    compression = {name: column.compression for name, column in columns.items()}
    assert compression == {"text": "ZSTD", "tokens": "ZSTD", "vector": "UNCOMPRESSED", "value": "ZSTD"}
    statistics = {name: column.is_stats_set for name, column in columns.items()}
    assert statistics == {"text": True, "tokens": False, "vector": False, "value": True}


def test_large_tables_are_cut_into_row_groups() -> None:
    table = pa.table({"x": np.arange(ROW_GROUP_ROWS + 1)})
    assert pq.ParquetFile(pa.BufferReader(serialize(table))).metadata.num_row_groups == 2
