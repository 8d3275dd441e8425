"""Writers of outputs: each call streams its object to the store at once and remembers what it wrote."""

from __future__ import annotations

import operator
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tasks.artifacts import parquet, tensors
from tasks.artifacts.manifest import Output, TensorInfo, check_name, join
from tasks.artifacts.store import Store, pretty_json

if TYPE_CHECKING:
    from tasks.artifacts.tensors import Tensor


class Writer:
    """Tables, tensors and counts of one chunk, or of a shard as a whole.

    ``label`` goes into the names of the objects. ``outputs`` and ``counts`` are what a record of it says.
    """

    def __init__(self, store: Store, label: str = "") -> None:
        self.outputs: dict[str, Output] = {}
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self._store = store
        self._label = label

    def table(self, name: str, table: pa.Table) -> None:
        """Write a table; a second one of the same name is appended to the first."""
        if not isinstance(table, pa.Table):
            raise TypeError(f"table {name!r} is a {type(table).__name__}; give a pyarrow.Table")
        columns = {field.name: str(field.type) for field in table.schema}
        if len(columns) < table.num_columns:
            raise ValueError(f"table {name!r} has two columns of one name: {', '.join(table.column_names)}")
        self._put(name, "table", ".parquet", [parquet.serialize(table)], table.num_rows, columns=columns)

    def tensors(self, name: str, values: Mapping[str, Tensor]) -> None:
        """Write named tensors; a second set of the same name is appended along axis 0."""
        buffers, infos = tensors.serialize(values)
        lengths = {info.shape[0] if info.shape else None for info in infos.values()}
        rows = lengths.pop() if len(lengths) == 1 else None
        self._put(name, "tensors", ".safetensors", buffers, rows, tensors=infos)

    def count(self, **counts: int) -> None:
        """Add to the shard's counts."""
        self.counts.update({name: operator.index(value) for name, value in counts.items()})

    def _put(
        self,
        name: str,
        kind: Any,
        suffix: str,
        buffers: list[Any],
        rows: int | None = None,
        columns: dict[str, str] | None = None,
        tensors: dict[str, TensorInfo] | None = None,
    ) -> None:
        started = time.monotonic()
        stem = check_name(name).removesuffix(suffix)
        ref = self._store.put_object(stem + self._label, suffix, buffers, rows)
        output = Output(kind=kind, objects=[ref], rows=rows, columns=columns, tensors=tensors)
        known = self.outputs.get(name)
        self.outputs[name] = join(name, [known, output]) if known else output
        self.seconds += time.monotonic() - started


class ShardWriter(Writer):
    """Outputs of a shard as a whole."""

    def json(self, name: str, value: Any) -> None:
        """Write a value as JSON. Raises: TypeError, ValueError when JSON can't hold it."""
        try:
            data = pretty_json(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"output {name!r}: {error}; use plain Python values, and None for NaN") from error
        self._put(name, "json", ".json", [data])

    def file(self, name: str, data: bytes) -> None:
        """Write a file as it is; ``name`` with its ending."""
        dot = name.rfind(".")
        self._put(name, "file", name[dot:] if dot > 0 else "", [data])
