"""Declared tables: made, checked, read and listed from one declaration."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tasks.artifacts.schema import Column, TableSchema, markdown
from tasks.artifacts.shard import Outputs
from tasks.artifacts.store import Store
from tasks.artifacts.writer import ShardWriter

SIZES = TableSchema(
    "sizes",
    "A row for each thing.",
    (Column("name", pa.string(), "What it is called."), Column("size", pa.int32(), "How large it is, in metres.")),
)


def stored(store: Store, table: pa.Table, name: str = "sizes") -> Outputs:
    writer = ShardWriter(store)
    writer.table(name, table)
    return Outputs(store, writer.outputs)


def test_tables_get_the_declared_order_and_types() -> None:
    expected = pa.table({"name": pa.array(["a", None]), "size": pa.array([1, 2], pa.int32())})
    rows = [{"size": 1, "name": "a", "colour": "red"}, {"size": 2}]
    assert SIZES.from_rows(rows).equals(expected)
    assert SIZES.from_columns({"size": np.array([1, 2]), "name": ["a", None]}).equals(expected)
    assert SIZES.checked(expected) is expected
    assert SIZES.from_rows([]).schema.equals(SIZES.arrow)


def test_a_column_too_few_or_of_another_type_is_refused() -> None:
    with pytest.raises(KeyError, match="size"):
        SIZES.from_columns({"name": ["a"]})
    with pytest.raises(TypeError, match=r"'sizes' is declared as\nname: string\nsize: int32\nand is\nname: string"):
        SIZES.checked(pa.table({"name": ["a"], "size": [1]}))


def test_columns_are_read_by_name(store: Store) -> None:
    outputs = stored(store, SIZES.from_rows([{"name": "a", "size": 1}]))
    assert SIZES.read(outputs).to_pylist() == [{"name": "a", "size": 1}]
    assert SIZES.read(outputs, ["size"]).column_names == ["size"]
    with pytest.raises(KeyError, match="table 'sizes' has no column colour; it has name, size"):
        SIZES.read(outputs, ["name", "colour"])


def test_what_is_stored_otherwise_than_declared_is_refused(store: Store) -> None:
    outputs = stored(store, pa.table({"name": ["a"], "size": [1.5]}))
    assert SIZES.read(outputs, ["name"]).to_pylist() == [{"name": "a"}]
    with pytest.raises(TypeError, match=r"sizes\.size is declared as int32 and stored as double"):
        SIZES.read(outputs)


def test_a_page_lists_them() -> None:
    assert markdown("Things", [SIZES]) == (
        "# Things\n\n## sizes\n\nA row for each thing.\n\n| column | type | meaning |\n| --- | --- | --- |\n"
        "| `name` | string | What it is called. |\n| `size` | int32 | How large it is, in metres. |\n"
    )
