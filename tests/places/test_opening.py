"""Paths and keys mean themselves, whatever characters are in them; chains and patterns are told from them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tasks.models.sources import model_source
from tasks.models.spec import ModelRef
from tasks.places.folder import Folder
from tasks.places.opening import is_chain, open_location
from tasks.places.patterns import matching, split_pattern
from tasks.sae.load import load_sae
from tasks.sae.spec import SaeSource
from tasks.text.files import find
from tasks.text.spec import TextSource
from tests.sae import checkpoints

ODD = ["a::b", "[x]", "a*", "what?", "a b", "100%25", "#1", "größe", "x:y@z", "a&b=c;d", "{layer"]


@pytest.fixture(params=["disk", "file", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_url')}/base"
    return f"file://{tmp_path}" if request.param == "file" else str(tmp_path)


def test_a_store(base: str) -> None:
    stores = [Store(f"{base}/{odd}/store") for odd in ODD]
    for store, odd in zip(stores, ODD, strict=True):
        store.write_bytes("shards/x", odd.encode())
    for store, odd in zip(stores, ODD, strict=True):
        assert store.url.endswith(f"/{odd}/store")
        assert Store(store.url).list() == ["shards/x"]
        assert store.read_bytes("shards/x") == odd.encode()
    assert len(Store(base).list()) == len(ODD)


def test_texts(base: str) -> None:
    for odd in ODD:
        Store(base).write_bytes(f"{odd}/{odd}.txt", b"text")
    for odd in ODD:
        for location in (f"{base}/{odd}", f"{base}/{odd}/{odd}.txt"):
            [file] = find(TextSource(location=location))
            assert file.path.endswith(f"/{odd}/{odd}.txt")
    for pattern in ("*.txt", "[[]*"):
        [file] = find(TextSource(location=f"{base}/[x]/{pattern}"))
        assert file.path.endswith("/[x]/[x].txt"), "a folder that is there is no pattern"


@pytest.mark.parametrize("layers", ["{layer}", "*{layer}"])
def test_dictionaries(base: str, layers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOMOGRAPH_CACHE", str(tmp_path / "cache"))
    folder = checkpoints.sparsify(tmp_path / "made" / "layers.3")
    for odd in ODD[:-1]:
        for file in folder.iterdir():
            Store(base).write_bytes(f"{odd}/layers.3/{file.name}", file.read_bytes())
        load_sae(SaeSource(kind="sparsify", location=f"{base}/{odd}/layers.{layers}", layers=[3]), 3)


def test_a_model_folder(tmp_path: Path) -> None:
    for odd in ODD:
        (tmp_path / odd).mkdir()
        for location in (f"{tmp_path}/{odd}", f"file://{tmp_path}/{odd}"):
            source = model_source(ModelRef(source=location))
            assert source.place == Folder(str(tmp_path / odd), "model.source", tmp_path / odd)


def test_chains() -> None:
    assert is_chain("simplecache::s3://bucket/x")
    assert is_chain("zip://a.txt::https://host/x.zip")
    for literal in ("/x/a::b", "s3://bucket/a::b", "a::b", "http://[::1]/x", "s3://bucket/zip::b"):
        assert not is_chain(literal)


def test_a_file_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("inner.txt", "inside")
    fs, path = open_location(f"zip://inner.txt::{tmp_path.as_uri()}/x.zip", "field")
    assert fs.cat_file(path) == b"inside"


@pytest.mark.parametrize("bucket", ["my bucket", "bücket", "a" * 300, "b*"])
def test_a_bucket_that_cannot_be(bucket: str) -> None:
    for scheme in ("s3", "s3a"):
        with pytest.raises(BadInput, match=r"store = .*can't be the name of a bucket; use letters"):
            Store(f"{scheme}://{bucket}/x")


def test_patterns(tmp_path: Path) -> None:
    for name in ("a/1.txt", "a/2.txt", "a/b/3.txt", "[a]/4.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    fs, root = open_location(str(tmp_path), "field")

    def found(pattern: str) -> list[str]:
        return list(matching(fs, *split_pattern(fs, f"{root}/{pattern}")))

    assert split_pattern(fs, f"{root}/[a]/*") == (f"{root}/[a]", "*")
    assert split_pattern(fs, f"{root}/[a]") == (f"{root}/[a]", "")
    assert split_pattern(fs, f"{root}/[b]/c") == (root, "[b]/c")
    assert found("a/[1-9].txt") == ["1.txt", "2.txt"]
    assert found("a/**/*.txt") == ["1.txt", "2.txt", "b/3.txt"]
    assert found("[[]a]/*") == ["[a]/4.txt"]
    assert found("?/*.txt") == ["a/1.txt", "a/2.txt"]
