"""Shards as their readers see them: what the manifest names, verified, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import BaseModel

from tasks.artifacts.catalog import finished, load_spec, store_spec
from tasks.artifacts.manifest import MANIFEST, Manifest, join, read_manifest, write_manifest
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.artifacts.writer import ShardWriter
from tasks.context import ShardContext
from tasks.errors import BadInput, CorruptObject
from tasks.spec import InputRef, TaskKind


class NumberParams(BaseModel):
    number: int = 0


KIND = TaskKind("test.shard", 1, NumberParams, "nowhere:unused")


def write_shard(store: Store, number: int = 0, chunks: int = 3) -> Manifest:
    """A shard with one output of each kind."""
    spec = KIND.spec({"number": number})
    store_spec(store, spec)
    context = ShardContext(store, spec, NumberParams(number=number))
    for chunk in context.chunks(chunks):
        first = 2 * chunk.index
        chunk.table("rows", pa.table({"x": [first, first + 1], "text": [f"chunk {chunk.index}"] * 2}))
        chunk.tensors("vectors", {"v": np.full((2, 4), first, np.float16), "w": np.arange(2)})
        chunk.count(rows=2)
        chunk.commit()
    context.table("empty", pa.schema({"x": pa.int8(), "text": pa.string()}).empty_table())
    context.tensors("weights", {"scalar": torch.tensor(2.0), "matrix": torch.ones(3, 2, dtype=torch.bfloat16)})
    context.json("findings", {"b": [1, None], "a": number})
    context.file("report.html", b"<html>")
    context.count(rows=0, reports=1)
    manifest = Manifest.of(spec, *context.results(), run={"host": "here"})
    write_manifest(store, manifest)
    return manifest


def path_of(store: Store, manifest: Manifest, output: str, index: int = 0) -> Path:
    return Path(store.url_of(f"{manifest.spec.path}/{manifest.outputs[output].objects[index].path}"))


@pytest.mark.parametrize("kind", ["store", "s3_store"])
def test_round_trip(kind: str, request: pytest.FixtureRequest) -> None:
    store: Store = request.getfixturevalue(kind)
    manifest = write_shard(store)
    shard = Shard(store, manifest.spec.path)
    assert shard.manifest == manifest
    assert shard.table("rows")["x"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert shard.table("rows", ["text", "x"]).column_names == ["text", "x"]
    assert shard.table("rows", ["x"]).column_names == ["x"]
    assert [table["x"].to_pylist() for table in shard.tables("rows")] == [[0, 1], [2, 3], [4, 5]]
    assert [list(part) for part in shard.tensors("vectors")] == [["v", "w"]] * 3
    assert np.concatenate([part["v"] for part in shard.tensors("vectors")])[:, 0].tolist() == [0, 0, 2, 2, 4, 4]
    (weights,) = shard.torch_tensors("weights")
    assert weights["matrix"].dtype == torch.bfloat16
    assert weights["scalar"].item() == 2.0
    assert shard.table("empty").schema == pa.schema({"x": pa.int8(), "text": pa.string()})
    assert shard.json("findings") == {"a": 0, "b": [1, None]}
    assert shard.file("report.html") == b"<html>"
    assert shard.counts == {"reports": 1, "rows": 6}
    assert "rows" in shard
    assert "others" not in shard
    shard.verify()


def test_the_manifest_says_what_there_is(store: Store) -> None:
    manifest = write_shard(store)
    rows, vectors = manifest.outputs["rows"], manifest.outputs["vectors"]
    assert (rows.kind, rows.rows, rows.columns) == ("table", 6, {"x": "int64", "text": "string"})
    assert [ref.rows for ref in rows.objects] == [2, 2, 2]
    assert vectors.rows == 6
    assert vectors.tensors is not None
    assert (vectors.tensors["v"].dtype, vectors.tensors["v"].shape) == ("F16", [6, 4])
    assert manifest.outputs["weights"].rows is None
    assert manifest.outputs["empty"].rows == 0
    names = {ref.path.rpartition("-")[0] for output in manifest.outputs.values() for ref in output.objects}
    assert {"rows-00000", "rows-00002", "vectors-00001", "findings", "report", "empty"} <= names


def test_all_but_the_run_is_reproducible(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    write_shard(store), write_shard(other)
    ours, theirs = ({path: s.read_bytes(path) for path in s.list()} for s in (store, other))
    assert ours == theirs


def test_the_digest_covers_outputs_and_counts(store: Store) -> None:
    manifest = write_shard(store)
    assert Manifest.of(manifest.spec, manifest.outputs, manifest.counts, {"host": "there"}).digest == manifest.digest
    assert Manifest.of(manifest.spec, manifest.outputs, {"rows": 7}, {}).digest != manifest.digest
    fewer = {name: output for name, output in manifest.outputs.items() if name != "rows"}
    assert Manifest.of(manifest.spec, fewer, manifest.counts, {}).digest != manifest.digest
    assert manifest.ref == InputRef(shard=manifest.spec.path, digest=manifest.digest)


def test_no_manifest_no_result(store: Store) -> None:
    manifest = write_shard(store)
    store.remove(f"{manifest.spec.path}/{MANIFEST}")
    with pytest.raises(FileNotFoundError, match="is not finished"):
        Shard(store, manifest.spec.path)
    with pytest.raises(BadInput, match=r"inputs\.x.*not finished"):
        Shard.open(store, manifest.ref, "inputs.x")


def test_unknown_outputs(store: Store) -> None:
    shard = Shard(store, write_shard(store).spec.path)
    with pytest.raises(KeyError, match=r"no table 'nothing'; it has .*rows \(table\)"):
        shard.table("nothing")
    with pytest.raises(KeyError, match=r"no json 'rows'"):
        shard.json("rows")
    with pytest.raises(KeyError, match=r"no column 'y'; there are x, text"):
        shard.table("rows", ["x", "y"])


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_noticed_and_named(store: Store, damage: str) -> None:
    manifest = write_shard(store)
    path = path_of(store, manifest, "rows", 1)
    data = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "cut":
            path.write_bytes(data[:-1])
        case "remove":
            path.unlink()
    shard = Shard(store, manifest.spec.path)
    for read in (lambda: shard.table("rows"), shard.verify, lambda: list(shard.tables("rows", ["x"]))):
        with pytest.raises(CorruptObject, match=path.name):
            read()
    assert next(shard.tables("rows"))["x"].to_pylist() == [0, 1], "what is sound can be read"
    assert (manifest.spec.hash in finished(store, [manifest.spec])) == (damage == "flip")


def rewrite(store: Store, manifest: Manifest, **changes: object) -> None:
    path = f"{manifest.spec.path}/{MANIFEST}"
    store.write_json(path, json.loads(store.read_bytes(path)) | changes)


def test_a_manifest_that_contradicts_itself(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    manifest = write_shard(store)
    for changes, message in (
        ({"counts": {"rows": 99}}, "does not match its own digest"),
        ({"spec": manifest.spec.model_copy(update={"seed": 9}).model_dump(mode="json")}, "belongs to another shard"),
        ({"outputs": 3}, r"no valid manifest \(outputs"),
        ({"surprise": 3}, r"no valid manifest \(surprise"),
    ):
        write_manifest(store, manifest)
        rewrite(store, manifest, **changes)
        with pytest.raises(CorruptObject, match=message):
            read_manifest(store, manifest.spec.path)
        assert finished(store, [manifest.spec]) == {}
        assert "computed anew" in caplog.text
    store.write_bytes(f"{manifest.spec.path}/{MANIFEST}", b'{"schema_version": 1, "sp')
    assert finished(store, [manifest.spec]) == {}


def test_an_input_that_changed(store: Store) -> None:
    manifest = write_shard(store)
    ref = InputRef(shard=manifest.spec.path, digest="0" * 64)
    with pytest.raises(BadInput, match="has changed since the shard was planned"):
        Shard.open(store, ref)


@pytest.mark.parametrize("kind", ["store", "s3_store"])
def test_many_at_once(kind: str, request: pytest.FixtureRequest) -> None:
    store: Store = request.getfixturevalue(kind)
    manifests = [write_shard(store, number, chunks=1) for number in range(12)]
    unfinished = KIND.spec({"number": 99})
    found = finished(store, [*(manifest.spec for manifest in manifests), unfinished])
    assert list(found.values()) == manifests
    assert finished(store, []) == {}


def test_specs_lie_where_they_belong(store: Store) -> None:
    spec = KIND.spec({"number": 3})
    url = store_spec(store, spec)
    assert url == f"{store.url}/{spec.path}/spec.json"
    assert load_spec(store, f"{spec.path}/spec.json") == spec
    with pytest.raises(BadInput, match="no such spec"):
        load_spec(store, "shards/x/y/spec.json")
    store.write_bytes("shards/x/y/spec.json", store.read_bytes(f"{spec.path}/spec.json"))
    with pytest.raises(CorruptObject, match="does not match its place"):
        load_spec(store, "shards/x/y/spec.json")


def test_pieces_must_fit(store: Store) -> None:
    writer = ShardWriter(store)
    writer.table("t", pa.table({"x": [1]}))
    writer.table("t", pa.table({"x": [2, 3]}))
    assert writer.outputs["t"].rows == 3
    with pytest.raises(ValueError, match="'t' has different pieces"):
        writer.table("t", pa.table({"x": ["a"]}))
    writer.tensors("v", {"a": np.zeros((2, 3))})
    for other in ({"a": np.zeros((2, 4))}, {"b": np.zeros((2, 3))}, {"a": np.zeros((2, 3), np.float32)}):
        with pytest.raises(ValueError, match="'v' has different pieces"):
            writer.tensors("v", other)
    writer.json("j", 1)
    with pytest.raises(ValueError, match="'j' was given twice"):
        writer.json("j", 2)
    with pytest.raises(ValueError, match="different pieces"):
        join("x", [writer.outputs["t"], writer.outputs["v"]])
    writer.tensors("s", {"scalar": np.array(1.0)})
    with pytest.raises(ValueError, match="'s' has different pieces"):
        writer.tensors("s", {"scalar": np.array(1.0)})


def test_what_a_writer_refuses(store: Store) -> None:
    writer = ShardWriter(store)
    with pytest.raises(TypeError, match=r"give a pyarrow\.Table"):
        writer.table("t", {"x": [1]})
    with pytest.raises(ValueError, match="two columns of one name"):
        writer.table("t", pa.table([[1], [2]], names=["x", "x"]))
    with pytest.raises(ValueError, match="output name 'a/b'"):
        writer.json("a/b", 1)
    with pytest.raises(ValueError, match=r"'j': .*None for NaN"):
        writer.json("j", float("nan"))
    with pytest.raises(TypeError, match=r"'j': .*plain Python"):
        writer.json("j", np.float32(1))
    with pytest.raises(TypeError):
        writer.count(rows=1.5)
    assert writer.outputs == {}
