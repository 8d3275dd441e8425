"""Chunks of a shard: what is committed one by one, so that a killed shard loses one chunk at most."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict

from tasks.artifacts.manifest import SCHEMA_VERSION, Output, join_outputs, missing_objects, parse_record
from tasks.artifacts.store import Store, pretty_json
from tasks.artifacts.writer import Writer
from tasks.errors import CorruptObject
from tasks.spec import canonical_json

log = logging.getLogger("tomograph.store")

FOLDER = "chunks"
READERS = 16


class ChunkRecord(BaseModel):
    """The commit of one chunk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    spec_hash: str
    index: int
    total: int
    processor: dict[str, str]
    """What computed it (``provenance.processor``): a shard's chunks have all the same."""
    outputs: dict[str, Output]
    counts: dict[str, int]
    checksum: str = ""
    """SHA-256 over all the rest."""

    def content_checksum(self) -> str:
        content = self.model_dump(mode="json", exclude={"checksum"})
        return hashlib.sha256(canonical_json(content)).hexdigest()


class Chunk(Writer):
    """Chunk ``index`` of ``total``: write its outputs, then commit.

    ``sibling`` is the record of another chunk of the shard, if there is one: their outputs must fit together.
    """

    def __init__(
        self,
        store: Store,
        spec_hash: str,
        index: int,
        total: int,
        processor: Mapping[str, str],
        sibling: ChunkRecord | None = None,
    ) -> None:
        super().__init__(store, label=f"-{index:05d}")
        self.index = index
        self.total = total
        self.record: ChunkRecord | None = None
        self._spec_hash = spec_hash
        self._processor = dict(processor)
        self._sibling = sibling

    def commit(self) -> None:
        """Make the chunk count: from here on no rerun computes it again.

        Raises:
            ValueError: an output has other columns, types or shapes than in another chunk.
        """
        if self.record is not None:
            raise RuntimeError(f"chunk {self.index} was committed twice")
        if self._sibling is not None:
            join_outputs([self._sibling.outputs, self.outputs])
        record = ChunkRecord(
            spec_hash=self._spec_hash,
            index=self.index,
            total=self.total,
            processor=self._processor,
            outputs=self.outputs,
            counts=dict(self.counts),
        )
        self.record = record.model_copy(update={"checksum": record.content_checksum()})
        self._store.write_bytes(_path(self.index), pretty_json(self.record.model_dump(mode="json")))


def committed_chunks(store: Store, spec_hash: str, total: int, processor: Mapping[str, str]) -> dict[int, ChunkRecord]:
    """Committed chunks by index, in order. ``store`` is the view of the shard's folder.

    A record that can't be read or was changed, or whose objects are missing or cut short, is left out and logged: its
    chunk is to be computed anew. So are all chunks of another processor, since a shard's last bits depend on it.

    Raises:
        RuntimeError: a record counts another number of chunks, so the number does not follow from the spec.
    """
    sizes = store.sizes()
    paths = sorted(path for path in sizes if path.startswith(f"{FOLDER}/"))
    with ThreadPoolExecutor(READERS) as pool:
        records = list(pool.map(lambda path: _read(store, path), paths))
    committed = {}
    others: Counter[str] = Counter()
    for path, record in zip(paths, records, strict=True):
        if record is None:
            continue
        if record.total != total:
            raise RuntimeError(
                f"{store.url_of(path)} is one of {record.total} chunks, but now there are {total}; "
                "the number of chunks must follow from the spec alone"
            )
        if record.spec_hash != spec_hash or path != _path(record.index):
            log.warning("%s does not belong there; the chunk is computed anew", store.url_of(path))
        elif not _agree(record.processor, processor):
            others[_in_words(record.processor)] += 1
        elif missing := missing_objects(record.outputs, sizes):
            names = ", ".join(missing)
            log.warning("chunk %d lacks %s or a part of it; it is computed anew", record.index, names)
        else:
            committed[record.index] = record
    for other, n in sorted(others.items()):
        here = _in_words(processor)
        log.warning("%d chunks were computed on %s and this is %s; they are computed anew", n, other, here)
    return dict(sorted(committed.items()))


def _agree(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Of what both know: a process that has not loaded torch has nothing to say of it."""
    return all(one[name] == other[name] for name in one.keys() & other.keys())


def _in_words(processor: Mapping[str, str]) -> str:
    """'AMD EPYC 9654 (cpu, AVX512, 2.13.0)'"""
    rest = [processor[name] for name in ("device", "capability", "torch") if name in processor]
    return f"{processor.get('name')} ({', '.join(rest)})"


def read_record(store: Store, path: str) -> ChunkRecord:
    """The record at ``path``. Raises: FileNotFoundError, CorruptObject."""

    def parsed(data: bytes) -> ChunkRecord:
        record = parse_record(ChunkRecord, data, store.url_of(path))
        if record.checksum != record.content_checksum():
            raise CorruptObject(f"{store.url_of(path)} does not match its own checksum")
        return record

    return store.read_verified(path, parsed)


def _read(store: Store, path: str) -> ChunkRecord | None:
    try:
        return read_record(store, path)
    except (CorruptObject, FileNotFoundError) as error:
        log.warning("%s; the chunk is computed anew", error)
        return None


def _path(index: int) -> str:
    return f"{FOLDER}/{index:05d}.json"
