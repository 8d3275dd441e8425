"""Which faults are met with patience, tried on a real S3 server behind a proxy that commits them."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator

import pytest

from tasks.artifacts import retry
from tasks.artifacts import store as store_module
from tasks.artifacts.catalog import finished, load_spec, split_spec_url, store_spec
from tasks.artifacts.retry import explain, is_transient, persist
from tasks.artifacts.s3 import PART_SIZE
from tasks.artifacts.store import SAME_READS, Store
from tasks.errors import CorruptObject, StoreError, TransientError
from tasks.runner import run_shard
from tests.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.s3_server import ACCESS_KEY, S3Server
from tests.toy_tasks import KINDS

NO_RETRIES_OF_ITS_OWN = {"config_kwargs": {"retries": {"total_max_attempts": 1}}, "skip_instance_cache": True}


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: FaultyProxy, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store behind the proxy; the S3 client's own retries are off as far as it lets itself."""
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.02)
    return Store(f"{s3_url}/store", NO_RETRIES_OF_ITS_OWN | {"endpoint_url": proxy.endpoint}, patience=60)


@pytest.mark.parametrize(
    ("fault", "count"),
    # s3fs itself tries again up to four times after SlowDown
    [("drop", 4), ("lose_answer", 4), ("slow_down", 6), ("internal_error", 4)],
)
def test_small_objects_get_through(store: Store, proxy: FaultyProxy, fault: Fault, count: int) -> None:
    proxy.spoil(count, fault)
    store.write_bytes("a", b"content")
    proxy.spoil(count, fault)
    assert store.read_bytes("a") == b"content"
    proxy.spoil(1, fault)
    assert store.list() == ["a"]
    proxy.spoil(1, fault)
    assert store.size("b") is None
    assert proxy.faults_left == 0


def test_truncated_answers_are_asked_for_again(store: Store, proxy: FaultyProxy) -> None:
    ref = store.put_object("a", ".bin", [os.urandom(10**6)])
    proxy.spoil(3, "truncate", lambda request: request.startswith("GET"))
    assert len(store.get_object(ref)) == 10**6
    assert proxy.faults_left == 0


@pytest.mark.parametrize("fault", ["cut_short", "flip"])
def test_what_is_damaged_on_the_way_is_asked_for_again(
    store: Store, proxy: FaultyProxy, toy_tasks: None, fault: Fault
) -> None:
    def is_read(request: str) -> bool:
        return request.startswith("GET") and "list-type" not in request

    ref = store.put_object("a", ".bin", [os.urandom(10**5)])
    proxy.spoil(4, fault, is_read)
    assert len(store.get_object(ref)) == 10**5
    spec = KINDS[0].spec({"n": 3})
    manifest = run_shard(store, spec)
    proxy.spoil(3, "cut_short", is_read)  # a flipped letter may leave a manifest as good as it was
    assert finished(store, [spec]) == {spec.hash: manifest}
    proxy.spoil(2, "cut_short", is_read)
    assert load_spec(store, split_spec_url(store_spec(store, spec))[1]) == spec
    assert proxy.faults_left == 0


def test_damage_on_the_way_that_stays_is_named(proxy: FaultyProxy, s3_url: str) -> None:
    store = Store(s3_url, NO_RETRIES_OF_ITS_OWN | {"endpoint_url": proxy.endpoint}, patience=1)
    ref = store.put_object("a", ".bin", [os.urandom(10**5)])
    proxy.spoil(1000, "flip")
    damaged = "(what arrived is damaged|.*did not match calculated checksum)"  # by our checksum, or by the server's
    with pytest.raises(TransientError, match=rf"{s3_url}/{ref.path}: {damaged}"):
        store.get_object(ref)


def test_a_damaged_object_is_not_waited_for(store: Store, proxy: FaultyProxy) -> None:
    ref = store.put_object("a", ".bin", [b"content"])
    store.write_bytes(ref.path, b"c0ntent")
    proxy.requests.clear()
    with pytest.raises(CorruptObject, match=rf"{ref.path} has changed since it was written"):
        store.get_object(ref)
    assert sum(request.startswith("GET") for request in proxy.requests) == SAME_READS


@pytest.mark.parametrize("fault", ["drop", "lose_answer", "slow_down"])
def test_a_fault_in_a_large_upload_costs_one_part(store: Store, proxy: FaultyProxy, fault: Fault) -> None:
    data = os.urandom(2 * PART_SIZE + 1)
    proxy.spoil(2, fault, lambda request: "partNumber=2" in request)
    proxy.spoil(2, fault, lambda request: request.startswith("POST") and "uploadId=" in request)
    ref = store.put_object("large", ".bin", [data])
    assert store.get_object(ref) == data
    assert proxy.faults_left == 0
    assert sum("partNumber=1" in request for request in proxy.requests) == 1
    assert store.list() == [ref.path]


def test_refusals_are_not_repeated(store: Store, proxy: FaultyProxy, s3_url: str) -> None:
    wrong = {"key": ACCESS_KEY, "secret": "wrong", "endpoint_url": proxy.endpoint}
    with pytest.raises(StoreError):
        Store(s3_url, wrong).write_bytes("a", b"")
    with pytest.raises(StoreError):
        Store("s3://no-such-bucket", {"endpoint_url": proxy.endpoint}).write_bytes("a", b"")
    with pytest.raises(FileNotFoundError):
        store.read_bytes("nothing")
    writes = [request for request in proxy.requests if request.startswith("PUT")]
    assert len(writes) == 2, writes
    reads = [request for request in proxy.requests if request.startswith("GET") and "nothing" in request]
    assert len(reads) <= 1


def test_patience_ends(proxy: FaultyProxy, s3_url: str, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(s3_url, NO_RETRIES_OF_ITS_OWN | {"endpoint_url": proxy.endpoint}, patience=2)
    proxy.spoil(10_000, "internal_error")
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(TransientError, match=rf"{s3_url}/a"):
        store.write_bytes("a", b"")
    assert 2 < time.monotonic() - started < 20
    assert "trying again" in caplog.text


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("http://127.0.0.1:9", "connection refused"),
        ("http://no-such-host.invalid", "the server's name can't be resolved"),
    ],
)
def test_a_server_that_is_not_there(
    endpoint: str, why: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "UNREACHED_PATIENCE_SECONDS", 1.0)
    store = Store("s3://bucket", {"endpoint_url": endpoint, "key": "k", "secret": "s"})
    started = time.monotonic()
    with pytest.raises(TransientError, match=rf"s3://bucket/a: {why}"):
        store.read_bytes("a")
    assert time.monotonic() - started < 20
    assert f"s3://bucket/a: {why}" in caplog.text
    assert "trying again for up to 1 s" in caplog.text


def test_a_server_that_was_there_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "UNREACHED_PATIENCE_SECONDS", 0.01)
    store = Store("memory://waited-for", patience=5)
    store.write_bytes("a", b"1")
    calls = iter([ConnectionRefusedError(errno.ECONNREFUSED, "refused")] * 3)

    def restarting(path: str) -> bytes:
        if (error := next(calls, None)) is not None:
            raise error
        return b"1"

    monkeypatch.setattr(store._fs, "cat_file", restarting)
    assert store.read_bytes("a") == b"1"


@pytest.mark.parametrize("endpoint", ["localhost:9", "http://", "ftp://x", "not a url", "http://127.0.0.1:99999"])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    store = Store("s3://bucket", {"endpoint_url": endpoint, "key": "k", "secret": "s"})
    with pytest.raises(StoreError, match=r"the S3 endpoint is none.*correct AWS_ENDPOINT_URL"):
        store.write_bytes("a", b"")


def test_waits_grow() -> None:
    calls: list[float] = []

    def fail() -> None:
        calls.append(time.monotonic())
        raise ConnectionResetError

    with pytest.raises(TransientError, match="somewhere: ConnectionResetError"):
        persist(fail, "somewhere", patience=1)
    assert 2 <= len(calls) < 40


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        TimeoutError(),
        OSError(errno.ESTALE, "stale file handle"),
        BrokenPipeError(),
    ],
)
def test_passing(error: Exception) -> None:
    assert is_transient(error)
    wrapped = RuntimeError("a library's own error")
    wrapped.__cause__ = error
    assert is_transient(wrapped)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left.*finished chunks are kept"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left"),
        (OSError(errno.EROFS, "Read-only file system"), "not accessible"),
        (PermissionError(errno.EACCES, "Permission denied"), "not accessible"),
        (PermissionError("no number"), "access was denied"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "choose a folder"),
    ],
)
def test_lasting(error: Exception, message: str) -> None:
    assert not is_transient(error)

    def fail() -> None:
        raise error

    with pytest.raises(StoreError, match=message):
        persist(fail, "somewhere", patience=60)


@pytest.mark.parametrize("error", [FileNotFoundError(), KeyError("x"), ValueError("x"), ZeroDivisionError()])
def test_others_pass_as_they_are(error: Exception) -> None:
    assert not is_transient(error)
    assert explain(error, "somewhere") is None
