"""Reading finished shards: only what the manifest names, every object verified."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tasks.artifacts import parquet, tensors
from tasks.artifacts.manifest import Manifest, Output, OutputKind, read_manifest
from tasks.artifacts.store import ObjectRef, Store
from tasks.errors import BadInput
from tasks.spec import InputRef

if TYPE_CHECKING:
    import torch

READ_AHEAD_OBJECTS = 8
READ_AHEAD_BYTES = 128 * 2**20


class Outputs:
    """Named outputs in one folder. ``store`` is the view of that folder."""

    def __init__(self, store: Store, outputs: Mapping[str, Output]) -> None:
        self._store = store
        self._outputs = outputs

    def __contains__(self, name: str) -> bool:
        return name in self._outputs

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The table ``name``, its chunks in order; with ``columns``, only these, in that order.

        Raises:
            KeyError: there is no such table or column.
            CorruptObject: what is stored is not what was written.
        """
        return pa.concat_tables(self.tables(name, columns))

    def tables(self, name: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The chunks of the table ``name``, one at a time."""
        for data in self._read(name, "table"):
            yield parquet.deserialize(data, columns)

    def tensors(self, name: str) -> Iterator[dict[str, np.ndarray]]:
        """The chunks of the tensors ``name`` as read-only numpy arrays, bfloat16 as float32."""
        for data in self._read(name, "tensors"):
            yield tensors.deserialize(data)

    def torch_tensors(self, name: str) -> Iterator[dict[str, torch.Tensor]]:
        """The chunks of the tensors ``name`` as torch tensors in their own type, on the CPU."""
        for data in self._read(name, "tensors"):
            yield tensors.deserialize_torch(data)

    def json(self, name: str) -> Any:
        (data,) = self._read(name, "json")
        return json.loads(data)

    def file(self, name: str) -> bytes:
        (data,) = self._read(name, "file")
        return data

    def verify(self) -> None:
        """Read every object. Raises: CorruptObject."""
        for output in self._outputs.values():
            for _ in self._fetch(output.objects):
                pass

    def _read(self, name: str, kind: OutputKind) -> Iterator[bytes]:
        output = self._outputs.get(name)
        if output is None or output.kind != kind:
            there = ", ".join(f"{other} ({one.kind})" for other, one in sorted(self._outputs.items()))
            raise KeyError(f"{self._store.url} has no {kind} {name!r}; it has {there or 'no outputs'}")
        return self._fetch(output.objects)

    def _fetch(self, refs: Sequence[ObjectRef]) -> Iterator[bytes]:
        """Verified contents in order, a few objects ahead of the consumer."""
        if len(refs) == 1:
            yield self._store.get_object(refs[0])
            return
        waiting = deque(refs)
        coming: deque[tuple[int, Future[bytes]]] = deque()
        with ThreadPoolExecutor(READ_AHEAD_OBJECTS) as pool:
            try:
                while waiting or coming:
                    ahead = sum(size for size, _ in coming)
                    while waiting and len(coming) < READ_AHEAD_OBJECTS and (not coming or ahead < READ_AHEAD_BYTES):
                        ref = waiting.popleft()
                        coming.append((ref.size, pool.submit(self._store.get_object, ref)))
                        ahead += ref.size
                    yield coming.popleft()[1].result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


class Shard(Outputs):
    """The finished shard in folder ``path`` of ``store``.

    Raises:
        FileNotFoundError: the shard has no manifest.
        CorruptObject: the manifest contradicts itself.
    """

    def __init__(self, store: Store, path: str) -> None:
        try:
            self.manifest: Manifest = read_manifest(store, path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{store.url_of(path)} is not finished: it has no manifest") from error
        super().__init__(store.at(path), self.manifest.outputs)
        self.path = path

    @classmethod
    def open(cls, store: Store, ref: InputRef, field: str = "inputs") -> Shard:
        """The shard that ``ref`` names, which must hold what it held when it was named.

        Raises:
            BadInput: it is gone or has another content now.
        """
        remedy = "run the flow again: it finds out what must be computed"
        try:
            shard = cls(store, ref.shard)
        except FileNotFoundError as error:
            raise BadInput(field, ref.shard, "this input is not finished", remedy) from error
        if shard.manifest.digest != ref.digest:
            raise BadInput(field, ref.shard, "this input has changed since the shard was planned", remedy)
        return shard

    @property
    def ref(self) -> InputRef:
        return self.manifest.ref

    @property
    def counts(self) -> dict[str, int]:
        return self.manifest.counts
