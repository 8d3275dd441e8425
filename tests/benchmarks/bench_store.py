"""Speed of the store: streaming a dense shard, and finding a thousand finished ones.

A plain writer puts the same bytes to the same place with ``open().write``; the ratio says what hashing,
chunk records, manifests and atomic writes cost.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from tasks.artifacts.catalog import finished
from tasks.artifacts.manifest import Manifest, Output, write_manifest
from tasks.artifacts.store import Store
from tasks.context import ShardContext
from tasks.spec import TaskKind
from tests.benchmarks.rows import row
from tests.s3_server import S3Server, running_s3_server

CHUNKS = 8
CHUNK_ROWS, WIDTH = 16 * 1024, 4096
"""Float16: 128 MiB for each chunk, 1 GiB for the shard."""
REPEATS = {"disk": 3, "S3": 2}
SHARDS = 1000

MIN_RATIO = 0.70
MAX_SECONDS_FOR_SHARDS = 5.0


class DenseParams(BaseModel):
    repeat: int


KIND = TaskKind("bench.dense", 1, DenseParams, "tests.benchmarks.bench_store:unused")


def run() -> list[dict[str, Any]]:
    """Rows of the table."""
    chunks = _dense_chunks()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        results = [*_disk(root, chunks), _finished(root)]
        (root / "s3").mkdir()
        with running_s3_server(root / "s3") as server:
            results += _s3(server, chunks)
    return results


def _dense_chunks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**16, (CHUNK_ROWS, WIDTH), dtype=np.uint16)
    return [np.bitwise_xor(bits, np.uint16(i)).view(np.float16) for i in range(CHUNKS)]


def _disk(root: Path, chunks: list[np.ndarray]) -> Iterator[dict[str, Any]]:
    def plain(repeat: int) -> None:
        with open(root / f"plain-{repeat}", "wb") as file:
            for chunk in chunks:
                file.write(memoryview(chunk).cast("B"))
            file.flush()
            os.fsync(file.fileno())

    store = Store(root / "store")
    return _compare("disk", chunks, lambda repeat: _stream(store, chunks, repeat), plain)


def _s3(server: S3Server, chunks: list[np.ndarray]) -> Iterator[dict[str, Any]]:
    url = server.make_bucket("bench-store")
    fs = server.filesystem()

    def plain(repeat: int) -> None:
        with fs.open(f"{url}/plain-{repeat}", "wb") as file:
            for chunk in chunks:
                file.write(memoryview(chunk).cast("B"))

    store = Store(f"{url}/store", server.options)
    return _compare("S3", chunks, lambda repeat: _stream(store, chunks, repeat), plain)


def _compare(
    place: str, chunks: list[np.ndarray], ours: Callable[[int], None], plain: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """Both writers in turn, so that a machine that slows down slows both; the best time of each."""
    mebibytes = sum(chunk.nbytes for chunk in chunks) / 2**20
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for repeat in range(REPEATS[place]):
        for name, write in (("plain", plain), ("ours", ours)):
            os.sync()
            started = time.perf_counter()
            write(repeat)
            seconds[name].append(time.perf_counter() - started)
    speed = {name: mebibytes / min(values) for name, values in seconds.items()}
    yield row(f"store: dense shard of {mebibytes:,.0f} MiB to {place}", speed["ours"], "MiB/s")
    yield row(f"store: plain writer to {place}", speed["plain"], "MiB/s")
    ratio = speed["ours"] / speed["plain"]
    yield row(f"store: dense shard against plain writer, {place}", ratio, "ratio", at_least=MIN_RATIO)


def _stream(store: Store, chunks: list[np.ndarray], repeat: int) -> None:
    spec = KIND.spec(DenseParams(repeat=repeat))
    context = ShardContext(store, spec, DenseParams(repeat=repeat))
    for chunk in context.chunks(len(chunks)):
        chunk.tensors("residuals", {"residual": chunks[chunk.index]})
        chunk.commit()
    write_manifest(store, Manifest.of(spec, *context.results(), run={}))


def _finished(root: Path) -> dict[str, Any]:
    store = Store(root / "many")
    specs = [KIND.spec(DenseParams(repeat=repeat)) for repeat in range(SHARDS)]
    for spec in specs:
        refs = [store.at(spec.path).put_object(f"part-{part}", ".bin", [b"content"]) for part in range(4)]
        write_manifest(store, Manifest.of(spec, {"parts": Output(kind="file", objects=refs)}, {"parts": 4}, {}))
    started = time.perf_counter()
    found = finished(store, specs)
    seconds = time.perf_counter() - started
    assert len(found) == SHARDS
    return row(f"store: finding {SHARDS} finished shards on disk", seconds, "s", at_most=MAX_SECONDS_FOR_SHARDS)


if __name__ == "__main__":
    for result in run():
        print(result)
