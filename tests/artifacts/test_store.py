"""The store on a local disk, in memory and in S3."""

from __future__ import annotations

import os
import tracemalloc
from datetime import timedelta
from pathlib import Path

import fsspec.config
import pytest
import xxhash

from tasks.artifacts import s3
from tasks.artifacts.s3 import PART_SIZE, split_parts
from tasks.artifacts.store import Store
from tasks.errors import BadInput, CorruptObject, StoreError
from tests.s3_server import ACCESS_KEY

LARGE = 3 * PART_SIZE + 12345


@pytest.fixture(params=["disk", "file", "memory", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    match request.param:
        case "disk":
            return Store(tmp_path / "store")
        case "file":
            return Store(f"file://{tmp_path}/store")
        case "memory":
            return Store(f"memory:/{tmp_path}/store")
        case _:
            return request.getfixturevalue("s3_store")


def test_whole_objects(any_store: Store) -> None:
    store = any_store
    assert store.list() == []
    assert not store.exists("a/b.bin")
    with pytest.raises(FileNotFoundError):
        store.read_bytes("a/b.bin")

    store.write_bytes("a/b.bin", b"first")
    store.write_bytes("a/b.bin", b"second, longer")
    store.write_json("a/c/d.json", {"z": 1, "a": "ü"})

    assert store.read_bytes("a/b.bin") == b"second, longer"
    assert store.read_json("a/c/d.json") == {"z": 1, "a": "ü"}
    assert store.read_bytes("a/c/d.json") == '{\n  "a": "ü",\n  "z": 1\n}\n'.encode()
    assert store.list() == store.list("a") == ["a/b.bin", "a/c/d.json"]
    assert store.sizes("a/c") == {"a/c/d.json": 26}
    assert store.at("a").sizes() == {"b.bin": 14, "c/d.json": 26}
    assert store.at("a").at("c").read_json("d.json") == {"z": 1, "a": "ü"}
    assert store.size("a") is None, "a folder is no object"

    store.remove("a/b.bin")
    store.remove("a/b.bin")
    assert store.list() == ["a/c/d.json"]


def test_two_views_of_one_url_see_each_other(any_store: Store) -> None:
    other = Store(any_store.url)
    assert other.list() == []
    any_store.write_bytes("x", b"1")
    assert other.list() == ["x"]
    assert other.read_bytes("x") == b"1"
    any_store.write_bytes("x", b"22")
    assert other.size("x") == 2


@pytest.mark.parametrize("size", [0, 1, PART_SIZE, PART_SIZE + 1, LARGE])
def test_objects_are_named_by_their_content(any_store: Store, size: int) -> None:
    data = os.urandom(size)
    pieces = [data[:1000], memoryview(data)[1000 : size // 2], bytearray(data[max(1000, size // 2) :])]
    ref = any_store.put_object("folder/part", ".bin", pieces, rows=7)
    digest = xxhash.xxh3_128_hexdigest(data)
    assert ref.path == f"folder/part-{digest[:16]}.bin"
    assert (ref.size, ref.xxh3_128, ref.rows) == (size, digest, 7)
    assert any_store.get_object(ref) == data
    assert any_store.list() == [ref.path]
    assert any_store.put_object("folder/part", ".bin", [data], rows=7) == ref


def test_an_object_that_is_there_is_not_written_again(store: Store) -> None:
    ref = store.put_object("x", ".bin", [b"content"])
    path = Path(store.url_of(ref.path))
    before = path.stat().st_mtime_ns, path.stat().st_ino
    store.put_object("x", ".bin", [b"content"])
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    path.write_bytes(b"cont")  # cut short, as by a writer that does not write atomically
    store.put_object("x", ".bin", [b"content"])
    assert store.get_object(ref) == b"content"


def test_reading_verifies(any_store: Store) -> None:
    ref = any_store.put_object("x", ".bin", [b"content"])
    any_store.write_bytes(ref.path, b"c0ntent")
    with pytest.raises(CorruptObject, match=rf"{ref.path} has changed since it was written"):
        any_store.get_object(ref)
    any_store.write_bytes(ref.path, b"cont")
    with pytest.raises(CorruptObject, match=rf"{ref.path} has 4 bytes, but was written with 7"):
        any_store.get_object(ref)
    any_store.remove(ref.path)
    with pytest.raises(CorruptObject, match=rf"{ref.path} is missing"):
        any_store.get_object(ref)


def test_json_that_is_none(store: Store) -> None:
    store.write_bytes("x.json", b"{")
    with pytest.raises(CorruptObject, match=r"x\.json is not JSON"):
        store.read_json("x.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json("x.json", float("nan"))


def test_parts_are_views_of_the_buffers() -> None:
    buffers = [b"abcde", memoryview(b"fg"), b"", bytearray(b"hijklmnop")]
    parts = list(split_parts(buffers, 4))
    assert [b"".join(part) for part in parts] == [b"abcd", b"efgh", b"ijkl", b"mnop"]
    assert parts[0][0].obj is buffers[0]
    assert list(split_parts([], 4)) == []
    assert [b"".join(part) for part in split_parts([b"abcde"], 4)] == [b"abcd", b"e"]


@pytest.mark.parametrize("kind", ["store", "s3_store"])
def test_streaming_does_not_copy_the_whole(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    part_size = 5 * 2**20
    monkeypatch.setattr(s3, "PART_SIZE", part_size)
    store: Store = request.getfixturevalue(kind)
    store.write_bytes("warm", b"up")
    block = os.urandom(2**20)
    tracemalloc.start()
    try:
        store.put_object("large", ".bin", [block] * 96)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    in_flight = 2 * s3.PARALLEL_PARTS * part_size  # each part here and once more in the HTTP client
    assert peak < (2**20 if kind == "store" else in_flight + part_size)


def test_paths_stay_in_the_store(store: Store) -> None:
    for path in ("/etc/passwd", "../x", "a/../../x"):
        with pytest.raises(ValueError, match="leaves the store"):
            store.read_bytes(path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://", "names no bucket"),
        ("s3://key:secret@bucket/x", "can't carry credentials"),
        ("nonsense://x", "Protocol not known"),
    ],
)
def test_urls_that_are_none(url: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        Store(url)
    assert "secret" not in str(caught.value)


def test_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/x.*choose a folder"):
        Store(tmp_path / "file").write_bytes("x", b"")


class TestS3:
    """What S3 says when it refuses, in words that name the place and the remedy."""

    def test_no_bucket(self, s3_url: str) -> None:
        store = Store("s3://no-such-bucket/x", patience=5)
        for action in (store.list, lambda: store.write_bytes("a", b""), lambda: store.read_bytes("a")):
            with pytest.raises(StoreError, match=r"s3://no-such-bucket/x.*the bucket does not exist; create it"):
                action()

    def test_no_credentials(self, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        store = Store(s3_url, {"skip_instance_cache": True}, patience=5)
        with pytest.raises(StoreError, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
            store.write_bytes("a", b"")

    def test_wrong_credentials(self, s3_url: str) -> None:
        store = Store(s3_url, {"key": ACCESS_KEY, "secret": "wrong-secret"}, patience=5)
        with pytest.raises(StoreError, match=r"refused \(SignatureDoesNotMatch\)") as caught:
            store.write_bytes("a", b"")
        assert "wrong-secret" not in str(caught.value)

    def test_read_only(self, s3_url: str) -> None:
        Store(s3_url).write_bytes("a", b"1")
        store = Store(s3_url, {"key": "reader", "secret": "reader-secret"}, patience=5)
        assert store.read_bytes("a") == b"1"
        with pytest.raises(StoreError, match="access was denied"):
            store.write_bytes("a", b"2")

    def test_profile_and_endpoint_of_a_config_file(
        self, s3_server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in s3_server.environment:
            monkeypatch.delenv(name)
        config = tmp_path / "config"
        config.write_text(
            f"[profile lab]\nregion = us-east-1\nendpoint_url = {s3_server.endpoint}\n"
            f"aws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret_key}\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.setenv("AWS_PROFILE", "lab")
        store = Store(s3_url, {"skip_instance_cache": True}, patience=5)
        store.write_bytes("a", b"1")
        assert store.list() == ["a"]

    def test_configuration_of_fsspec(self, s3_server, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in s3_server.environment:
            monkeypatch.delenv(name)
        settings = {**s3_server.options, "config_kwargs": {"user_agent_extra": "lab"}, "skip_instance_cache": True}
        monkeypatch.setitem(fsspec.config.conf, "s3", settings)
        store = Store(s3_url, patience=5)
        store.write_bytes("a", b"1")
        assert store.list() == ["a"]
        assert store._fs.config_kwargs == {
            "max_pool_connections": 64,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "user_agent_extra": "lab",
        }

    def test_uploads_of_killed_writers_are_aborted(self, s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        s3_store.write_bytes("folder/x", b"")
        fs = s3_store._fs
        bucket, key, _ = fs.split_path(s3_store._path("folder/large.bin"))
        fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)

        def uploads() -> list[str]:
            return [upload["Key"] for upload in fs.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads", [])]

        s3_store.remove_stale("folder")
        assert uploads() == [key], "it may still be going on"
        monkeypatch.setattr(s3.S3Backend, "stale_after", timedelta(0))
        s3_store.remove_stale("other")
        assert uploads() == [key]
        s3_store.remove_stale("folder")
        assert uploads() == []
