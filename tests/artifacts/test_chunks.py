"""Chunks: what is committed stays, what is damaged is computed again, and a shard is never half done."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import BaseModel

from tasks import provenance
from tasks.artifacts.store import Store
from tasks.context import ShardContext
from tasks.spec import TaskKind, TaskSpec


class NoParams(BaseModel):
    pass


SPEC: TaskSpec = TaskKind("test.chunks", 1, NoParams, "nowhere:unused").spec({})


def context(store: Store, events: list[dict] | None = None) -> ShardContext:
    report = events.append if events is not None else lambda event: None
    return ShardContext(store, SPEC, NoParams(), report=report)


def fill(store: Store, total: int = 5, stop_before: int | None = None) -> list[int]:
    """Compute and commit chunks, up to ``stop_before``; which ones it were."""
    done = []
    for chunk in context(store).chunks(total):
        if chunk.index == stop_before:
            break
        chunk.table("rows", pa.table({"chunk": [chunk.index]}))
        chunk.count(rows=1)
        chunk.commit()
        done.append(chunk.index)
    return done


def object_of(store: Store, chunk: int) -> Path:
    (path,) = Path(store.url_of(SPEC.path)).glob(f"rows-{chunk:05d}-*.parquet")
    return path


def test_a_rerun_goes_on_where_the_last_one_ended(store: Store) -> None:
    assert fill(store, stop_before=3) == [0, 1, 2]
    events: list[dict] = []
    ctx = context(store, events)
    assert next(ctx.chunks(5)).index == 3
    assert events == [{"event": "log", "message": "3 of 5 chunks are there from an earlier run"}]
    assert ctx.committed.table("rows")["chunk"].to_pylist() == [0, 1, 2]
    assert fill(store) == [3, 4]
    assert fill(store) == []


def test_the_order_of_computation_does_not_matter(store: Store, tmp_path: Path) -> None:
    fill(store)
    other = Store(tmp_path / "other")
    fill(other)
    object_of(other, 1).unlink()
    assert fill(other) == [1]
    results = []
    for one in (store, other):
        ctx = context(one)
        assert list(ctx.chunks(5)) == []
        results.append(ctx.results())
    assert results[0] == results[1]
    assert results[0][1] == {"rows": 5}


@pytest.mark.parametrize(
    "damage", ["missing object", "short object", "broken record", "edited record", "foreign record", "lost record"]
)
def test_a_damaged_chunk_is_computed_again(store: Store, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    fill(store)
    record = f"{SPEC.path}/chunks/00002.json"
    match damage:
        case "missing object":
            object_of(store, 2).unlink()
        case "short object":
            object_of(store, 2).write_bytes(b"short")
        case "broken record":
            store.write_bytes(record, store.read_bytes(record)[:40])
        case "edited record":
            store.write_json(record, store.read_json(record) | {"counts": {"rows": 1000}})
        case "foreign record":
            store.write_json(record, store.read_json(record) | {"spec_hash": "0" * 32})
        case "lost record":
            store.remove(record)
    assert fill(store) == [2]
    ctx = context(store)
    assert list(ctx.chunks(5)) == []
    assert ctx.results()[1] == {"rows": 5}
    assert ("anew" in caplog.text) == (damage != "lost record")
    assert fill(store) == []


def test_chunks_of_another_processor_are_computed_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A shard that goes on elsewhere never mixes the last bits of two machines, also when it is killed again."""
    fill(store, stop_before=3)
    here = provenance.processor("cpu")
    assert [store.read_json(path)["processor"] for path in store.list(f"{SPEC.path}/chunks")] == [here] * 3
    with monkeypatch.context() as other:
        other.setattr(provenance, "device_name", lambda device: "Another CPU")
        assert fill(store, stop_before=1) == [0]
        assert f"3 chunks were computed on {here['name']} (cpu, " in caplog.text
    assert fill(store) == [0, 3, 4]
    assert fill(store) == []


def test_the_number_of_chunks_must_follow_from_the_spec(store: Store) -> None:
    fill(store, total=5, stop_before=2)
    with pytest.raises(RuntimeError, match=r"00000\.json is one of 5 chunks, but now there are 6"):
        fill(store, total=6)


def test_shards_without_chunks_or_with_none(store: Store) -> None:
    assert context(store).results() == ({}, {})
    ctx = context(store)
    assert list(ctx.chunks(0)) == []
    assert ctx.results() == ({}, {})


def test_misuse(store: Store) -> None:
    ctx = context(store)
    chunks = ctx.chunks(2)
    next(chunks)
    with pytest.raises(RuntimeError, match="chunk 0 was not committed"):
        next(chunks)
    with pytest.raises(RuntimeError, match="called twice"):
        next(ctx.chunks(2))
    with pytest.raises(RuntimeError, match=r"without its chunks \[0, 1\] of 2"):
        ctx.results()

    ctx = context(store)
    for chunk in ctx.chunks(2):
        chunk.table("rows", pa.table({"x": [1]}))
        chunk.commit()
        with pytest.raises(RuntimeError, match="committed twice"):
            chunk.commit()
    ctx.table("rows", pa.table({"x": [1]}))
    with pytest.raises(ValueError, match=r"\['rows'\] were given by chunks and for the whole shard"):
        ctx.results()


def test_chunks_of_one_output_have_one_schema(store: Store) -> None:
    """Noticed at the first chunk that differs, not when all the work is done."""
    chunks = context(store).chunks(3)
    chunk = next(chunks)
    chunk.table("rows", pa.table({"x": ["zero"]}))
    chunk.commit()
    chunk = next(chunks)
    chunk.table("rows", pa.table({"x": [1]}))
    with pytest.raises(ValueError, match="'rows' has different pieces"):
        chunk.commit()
    assert next(context(store).chunks(3)).index == 1, "it does not count"
