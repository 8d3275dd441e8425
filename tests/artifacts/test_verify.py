"""Damage is found by reading everything, and by the quick check of a report that is reused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.__main__ import EXIT_BAD_INPUT, EXIT_DAMAGED, EXIT_OK, main
from tasks.artifacts.catalog import finished, store_spec
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store
from tasks.artifacts.verify import check_small
from tasks.errors import CorruptObject, StoreError
from tasks.runner import run_shard
from tasks.spec import TaskSpec
from tests.toy_tasks import KINDS

SQUARES, SUM = KINDS[0], KINDS[1]
CHECK = KINDS[-1]


@pytest.fixture
def study(store: Store, toy_tasks: None) -> tuple[Manifest, Manifest]:
    squares = run_shard(store, SQUARES.spec({"n": 10}))
    return squares, run_shard(store, SUM.spec({}, {"squares": [squares.ref]}))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def verify(store: Store, *options: str) -> int:
    return main(["verify", store.url, *options])


def test_a_whole_store(store: Store, study: tuple[Manifest, Manifest], capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(store) == EXIT_OK
    assert capsys.readouterr().out == ""
    check_small(store, study[1].spec)


@pytest.mark.parametrize("which", ["object", "chunk", "manifest"])
def test_a_flipped_byte_is_found_repaired_and_computed_anew(
    store: Store, study: tuple[Manifest, Manifest], capsys: pytest.CaptureFixture[str], which: str
) -> None:
    squares, total = study
    folder = Path(store.url_of(squares.spec.path))
    damaged = {
        "object": folder / next(iter(squares.outputs.values())).objects[1].path,
        "chunk": folder / "chunks" / "00001.json",
        "manifest": folder / "manifest.json",
    }[which]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole.replace(b"objects", b"objectz") if which != "object" else whole)
    if which == "object":
        flip(damaged)
        with pytest.raises(CorruptObject, match=rf"{damaged.name} has changed.*tasks verify {store.url} --repair"):
            check_small(store, total.spec)

    assert verify(store) == EXIT_DAMAGED
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{squares.spec.path}/{damaged.relative_to(folder)}\t")
    assert verify(store, "--repair") == EXIT_OK
    assert not damaged.exists()
    assert run_shard(store, squares.spec).digest == squares.digest
    if which != "chunk":  # a finished shard needs no record of its chunks
        assert damaged.read_bytes() == whole or which == "manifest"
    assert verify(store) == EXIT_OK


def test_what_is_missing_is_found(
    store: Store, study: tuple[Manifest, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    ref = next(iter(study[0].outputs.values())).objects[0]
    store.at(study[0].spec.path).remove(ref.path)
    assert verify(store) == EXIT_DAMAGED
    assert "is missing" in capsys.readouterr().out


def test_no_store(tmp_path: Path) -> None:
    assert main(["verify", str(tmp_path)]) == EXIT_BAD_INPUT


def test_a_finished_study_needs_no_writing(s3_url: str, toy_tasks: None, tmp_path: Path) -> None:
    """What a second run does, with the credentials of a user who may only read."""
    (tmp_path / "looked-at").write_text("12")
    writer = Store(s3_url)
    specs = [SQUARES.spec({"n": 10}), CHECK.spec({"path": str(tmp_path / "looked-at")})]
    manifests = [run_shard(writer, spec) for spec in specs]
    for spec in specs:
        store_spec(writer, spec)
    writer.ensure_bytes("reports/report.html", b"page")

    reader = Store(s3_url, {"key": "reader", "secret": "reader-secret"}, patience=5)
    with pytest.raises(StoreError):
        reader.write_bytes("x", b"")
    for spec in specs:
        store_spec(reader, spec)
    assert [run_shard(reader, spec) for spec in specs] == manifests
    assert len(finished(reader, specs)) == 2
    reader.ensure_bytes("reports/report.html", b"page")
    (tmp_path / "looked-at").write_text("another size")
    with pytest.raises(StoreError):
        run_shard(reader, specs[1])


def test_specs_are_written_where_they_differ(store: Store, toy_tasks: None) -> None:
    spec: TaskSpec = SQUARES.spec({"n": 1})
    path = Path(store_spec(store, spec))
    before = path.stat().st_mtime_ns
    store_spec(store, spec)
    assert path.stat().st_mtime_ns == before
    path.write_text("damaged")
    store_spec(store, spec)
    assert path.read_text().startswith("{")
