"""Local files: nothing half written is ever seen, whatever happens to the writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.artifacts.store import Store
from tasks.errors import StoreError

REPOSITORY = Path(__file__).parents[2]

SLOW_WRITER = """
import sys
from tasks.artifacts.store import Store


def buffers():
    yield b"x" * 1000
    print("writing", flush=True)
    sys.stdin.read()
    yield b"y"

class Pieces(list):
    __iter__ = lambda self: buffers()

store = Store(sys.argv[1])
store._write("folder/slow.bin", Pieces())
"""


@pytest.fixture
def slow_writer(store: Store) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing ``folder/slow.bin``; it goes on when its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, store.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


def temporaries(store: Store) -> list[str]:
    return [name for name in os.listdir(store.url_of("folder")) if name.startswith(".tmp-")]


def test_a_file_being_written_is_invisible_and_safe(store: Store, slow_writer: subprocess.Popen[str]) -> None:
    assert store.list() == []
    assert len(temporaries(store)) == 1
    store.remove_stale("folder")
    assert len(temporaries(store)) == 1
    slow_writer.communicate()
    assert slow_writer.returncode == 0
    assert store.read_bytes("folder/slow.bin") == b"x" * 1000 + b"y"
    assert temporaries(store) == []


def test_what_a_killed_writer_leaves_is_removed(store: Store, slow_writer: subprocess.Popen[str]) -> None:
    slow_writer.send_signal(signal.SIGKILL)
    slow_writer.wait()
    assert len(temporaries(store)) == 1
    assert store.list() == []
    store.remove_stale("elsewhere")
    store.remove_stale("folder")
    assert temporaries(store) == []


def test_an_overwritten_file_is_old_or_new(store: Store) -> None:
    """A reader in parallel never sees anything else."""
    contents = [bytes([i]) * 200_000 for i in range(2)]
    store.write_bytes("x", contents[0])
    stop = threading.Event()

    def write() -> None:
        for i in range(100_000):
            if stop.is_set():
                return
            store.write_bytes("x", contents[i % 2])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            assert store.read_bytes("x") in contents
            assert store.sizes() == {"x": 200_000}
    finally:
        stop.set()
        writer.join()


def test_files_follow_the_umask(store: Store) -> None:
    before = os.umask(0o027)
    try:
        store.write_bytes("x", b"")
    finally:
        os.umask(before)
    assert Path(store.url_of("x")).stat().st_mode & 0o777 == 0o640


def test_disk_full(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    first = store.put_object("first", ".bin", [os.urandom(2**20)])
    with pytest.raises(StoreError, match=r"second.*no space left.*finished chunks are kept") as caught:
        store.put_object("second", ".bin", [os.urandom(4 * 2**20)])
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert store.list() == [first.path]
    assert os.listdir(store.url) == [first.path], "no temporary file takes the space that is left"
    store.get_object(first)
    store.write_bytes("record.json", b"{}")


def test_read_only_folder(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError, match="not accessible"):
        Store(small_disk / "store").write_bytes("x", b"")
