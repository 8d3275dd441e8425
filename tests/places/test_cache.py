import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.places.cache import build_once, cache_root, file_digest

pytestmark = pytest.mark.usefixtures("cache")


def test_a_folder_is_built_once():
    builds = []

    def build(folder):
        builds.append(folder)
        (folder / "a").write_text("x")

    first, second = build_once("k/1", build), build_once("k/1", build)
    assert first == second == cache_root() / "k/1"
    assert len(builds) == 1
    assert (first / "a").read_text() == "x"


def test_a_failed_build_leaves_no_folder_and_can_be_repeated():
    def broken(folder):
        (folder / "half").write_text("x")
        raise OSError("line cut")

    with pytest.raises(OSError, match="line cut"):
        build_once("k/1", broken)
    assert not (cache_root() / "k/1").exists()
    assert not list((cache_root() / "k").glob("*partial*"))
    folder = build_once("k/1", lambda folder: (folder / "whole").write_text("x"))
    assert [p.name for p in folder.iterdir()] == ["whole"]


def _die_half_way(folder):
    (folder / "half").write_text("x")
    os._exit(9)


def test_what_a_killed_builder_left_is_never_used():
    process = multiprocessing.get_context("fork").Process(target=build_once, args=("k/1", _die_half_way))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert not (cache_root() / "k/1").exists()
    folder = build_once("k/1", lambda f: (f / "whole").write_text("x"))
    assert [p.name for p in folder.iterdir()] == ["whole"]


def _slow_build(folder):
    time.sleep(0.3)
    (folder / f"by-{os.getpid()}").touch()


def test_processes_that_want_the_same_folder_build_it_once():
    program = (
        "from tasks.places.cache import build_once; from tests.places.test_cache import _slow_build; "
        "build_once('k/1', _slow_build)"
    )
    root = Path(__file__).parents[2]
    processes = [subprocess.Popen([sys.executable, "-c", program], cwd=root) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert len(list((cache_root() / "k/1").iterdir())) == 1


def make_old(path, seconds=60):
    then = time.time_ns() - seconds * 10**9
    os.utime(path, ns=(then, then))


def test_digests_are_remembered_by_size_and_time_and_only_for_settled_files(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"aaaa")
    first = file_digest(path)
    assert not (cache_root() / "digests").exists()

    path.write_bytes(b"bbbb")
    make_old(path)
    second = file_digest(path)
    assert second != first
    time_of = path.stat().st_mtime_ns
    path.write_bytes(b"cccc")
    os.utime(path, ns=(time_of, time_of))
    assert file_digest(path) == second  # nothing that is looked at has changed, so the record was used
    make_old(path, seconds=30)
    assert file_digest(path) not in (first, second)


def test_a_damaged_record_is_computed_again(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"aaaa")
    make_old(path)
    digest = file_digest(path)
    record = next((cache_root() / "digests").iterdir())
    record.write_text("{")
    assert file_digest(path) == digest
