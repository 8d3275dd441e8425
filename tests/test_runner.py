"""One shard from its spec to its manifest, in this process and in one of its own."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.__main__ import SPINS, thread_settings
from tasks.artifacts.catalog import find_finished, store_spec
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.context import Runtime, ShardContext
from tasks.errors import BadInput
from tasks.gpus import check_device
from tasks.registry import kind
from tasks.runner import run_shard
from tasks.spec import InputRef, TaskSpec
from tests.shard_process import result_bytes, run, start, wait

pytestmark = pytest.mark.usefixtures("toy_tasks")

KILLS = {"store": 5, "s3_store": 2}


def squares(seed: int = 0, **params: Any) -> TaskSpec:
    return kind("toy.squares").spec(params, seed=seed)


@pytest.fixture(params=["store", "s3_store"])
def either_store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(request.param)


class TestInProcess:
    def test_a_shard_and_one_that_reads_it(self, store: Store) -> None:
        events: list[dict[str, Any]] = []
        first = run_shard(store, squares(n=10), report=events.append)
        second = run_shard(store, squares(n=5, seed=1))
        total = kind("toy.sum").spec({}, {"squares": [first.ref, second.ref]})
        manifest = run_shard(store, total)
        assert Shard(store, total.path).json("sum") == {"sum": 285 + 30}
        assert manifest.counts == {"numbers": 15}
        assert [event["event"] for event in events] == ["started", "progress", "progress", "finished"]
        assert events[-1] | {"shard": "", "digest": ""} == {
            "event": "finished",
            "shard": "",
            "digest": "",
            "counts": {"numbers": 10},
            "reused": False,
        }

    def test_a_finished_shard_is_not_computed_again(self, store: Store) -> None:
        first = run_shard(store, squares(n=10))
        events: list[dict[str, Any]] = []
        assert run_shard(store, squares(n=10), report=events.append) == first
        assert events[-1]["reused"] is True

    def test_what_always_runs(self, store: Store, tmp_path: Path) -> None:
        file = tmp_path / "file"
        spec = kind("toy.check").spec({"path": str(file)})
        file.write_text("1")
        first = run_shard(store, spec)
        file.write_text("22")
        second = run_shard(store, spec)
        assert Shard(store, spec.path).json("file") == {"size": 2}
        assert first.digest != second.digest

    def test_a_lost_object_is_made_again(self, store: Store) -> None:
        spec = squares(n=10)
        manifest = run_shard(store, spec)
        expected = result_bytes(store, spec)
        store.remove(f"{spec.path}/{manifest.outputs['squares'].objects[1].path}")
        assert find_finished(store, spec) is None
        assert run_shard(store, spec).digest == manifest.digest
        assert result_bytes(store, spec) == expected

    def test_the_account_of_the_run(self, store: Store) -> None:
        started = time.time()
        manifest = run_shard(store, squares(n=10, sleep_s=0.1), Runtime(batch_size=3, threads=1))
        account = manifest.run
        assert account["timings"]["total_seconds"] >= 0.3
        assert account["peak_memory"]["process_bytes"] > 30e6
        assert account["versions"].keys() >= {"python", "tomograph", "numpy", "pyarrow"}
        assert account["versions"]["tomograph"] == "0.1.0"
        assert (account["device"], account["batch_size"], account["threads"]) == ("cpu", 3, 1)
        assert account["notes"] == {"pid": os.getpid()}
        assert account["host"]
        assert account["device_name"]
        assert account["capability"] in (None, torch.backends.cpu.get_cpu_capability())
        assert account["started"][:4] == time.strftime("%Y", time.gmtime(started))
        assert manifest.seeds == {"shard": 0}

    def test_notes_may_hold_anything(self, store: Store) -> None:
        ctx = ShardContext(store, squares(), params=None)
        ctx.note("loss", np.float32(0.5))
        ctx.note("more", {"nan": float("nan"), "path": Path("x"), "tuple": (1, 2)})
        assert ctx.notes == {"loss": 0.5, "more": {"nan": "NaN", "path": "x", "tuple": [1, 2]}}

    def test_an_input_that_is_gone(self, store: Store) -> None:
        lost = InputRef(shard="shards/toy.squares/0", digest="0")
        with pytest.raises(BadInput, match=r"inputs\.squares = 'shards/toy\.squares/0': this input is not finished"):
            run_shard(store, kind("toy.sum").spec({}, {"squares": [lost]}))

    def test_inputs_are_named(self, store: Store) -> None:
        manifest = run_shard(store, squares(n=1))
        spec = kind("toy.sum").spec({}, {"one": manifest.ref, "many": [manifest.ref]})
        ctx = ShardContext(store, spec, params=None)
        assert ctx.input("one").ref == ctx.inputs("many")[0].ref == manifest.ref
        with pytest.raises(KeyError, match="without the input 'two'; it has many, one"):
            ctx.input("two")
        with pytest.raises(TypeError, match=r"use ctx\.inputs"):
            ctx.input("many")
        with pytest.raises(TypeError, match=r"use ctx\.input\("):
            ctx.inputs("one")

    def test_progress_is_throttled_but_its_end_is_told(self, store: Store) -> None:
        events: list[dict[str, Any]] = []
        ctx = ShardContext(store, squares(), params=None, report=events.append)
        for done in range(1001):
            ctx.progress(done, 1000, unit="trials")
        assert len(events) < 100
        assert events[-1] == {"event": "progress", "done": 1000, "total": 1000, "unit": "trials", "message": ""}

    def test_a_gpu_that_is_not_there(self) -> None:
        check_device("cpu")
        with pytest.raises(BadInput, match=r"device = 'cuda:99': torch .* sees .*--device cpu"):
            check_device("cuda:99")
        if torch.cuda.is_available():
            check_device("cuda")


class TestProcess:
    def test_events_and_exit(self, either_store: Store) -> None:
        spec = squares(n=10, fail="noise")
        ended = run(store_spec(either_store, spec), "--threads", "1", "--batch-size", "2")
        assert ended.code == 0, ended.stderr
        names = [event["event"] for event in ended.events]
        assert (names[0], names[-1]) == ("started", "finished")
        assert "a library prints this" in ended.stderr
        assert "a subprocess prints this" in ended.stderr
        manifest = Shard(either_store, spec.path).manifest
        assert ended.events[-1]["digest"] == manifest.digest
        assert (manifest.run["threads"], manifest.run["batch_size"]) == (1, 2)
        reference = run_shard(Store(f"memory://{spec.hash}"), spec)
        assert manifest.digest == reference.digest

    def test_warnings_of_the_store_are_events(self, store: Store) -> None:
        spec = squares(n=10)
        manifest = run_shard(store, spec)
        path = manifest.outputs["squares"].objects[1].path
        store.remove(f"{spec.path}/{path}")
        ended = run(store_spec(store, spec))
        messages = [event["message"] for event in ended.events if event["event"] == "log"]
        assert f"warning: chunk 1 lacks {path} or a part of it; it is computed anew" in messages

    def test_no_secret_is_left_anywhere(self, s3_store: Store, s3_server: Any) -> None:
        ended = run(store_spec(s3_store, squares(n=4)))
        assert ended.code == 0
        written = b"".join(s3_store.read_bytes(path) for path in s3_store.list())
        said = str(ended.events) + ended.stderr
        for secret in (s3_server.secret_key, s3_server.access_key):
            assert secret.encode() not in written
            assert secret not in said

    @pytest.mark.parametrize(
        ("fail", "code", "kind", "message"),
        [
            ("bad_input", 2, "bad_input", "params.fail = 'bad_input': this task was told to refuse its input"),
            ("transient", 75, "transient", "this task was told to meet a passing fault"),
            ("bug", 1, "bug", "this task was told to have a bug"),
        ],
    )
    def test_failures(self, store: Store, fail: str, code: int, kind: str, message: str) -> None:
        spec = squares(n=10, fail=fail, fail_at=1)
        ended = run(store_spec(store, spec))
        assert ended.code == code
        assert ended.failure["kind"] == kind
        assert message in ended.failure["message"]
        assert "toy_tasks.py" in ended.failure["traceback"]
        assert find_finished(store, spec) is None
        assert store.list(f"{spec.path}/chunks") == [f"{spec.path}/chunks/00000.json"]

    def test_specs_that_cannot_be_run(self, store: Store) -> None:
        newer = squares(n=1).model_copy(update={"version": 2})
        for url, message in (
            (f"{store.url}/shards/toy.squares/0/spec.json", "there is no such spec"),
            (f"{store.url}/spec.json", "is not the place of a spec"),
            (store_spec(store, newer), "computes version 1 of toy.squares"),
        ):
            ended = run(url)
            assert ended.code == 2, ended
            assert message in ended.failure["message"]

    def test_wrong_arguments(self, store: Store) -> None:
        ended = run(f"{store.url}/shards/a/b/spec.json", "--device", "tpu")
        assert ended.code == 2
        assert "argument --device: 'tpu' is no device; use cpu, cuda or cuda:N" in ended.stderr

    def test_a_full_disk_is_bad_input(self, small_disk: Path) -> None:
        """The chunks that were written stay, and count when there is room again."""
        store = Store(small_disk / "store")
        spec = squares(n=200_000, chunk_size=20_000)
        ended = run(store_spec(store, spec))
        assert ended.code == 2
        assert "there is no space left" in ended.failure["message"]
        chunks = len(store.list(f"{spec.path}/chunks"))
        assert chunks > 0
        subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
        ended = run(store_spec(store, spec))
        assert ended.code == 0
        assert f"{chunks} of 10 chunks are there" in str(ended.events)
        Shard(store, spec.path).verify()


class TestEndings:
    def test_sigterm(self, store: Store) -> None:
        spec = squares(n=1000, chunk_size=1, sleep_s=0.05)
        process = start(store_spec(store, spec))
        _await_chunks(store, spec, 3)
        asked = time.monotonic()
        process.terminate()
        ended = wait(process)
        assert time.monotonic() - asked < 10
        assert ended.code == 75
        assert ended.failure["kind"] == "transient"
        assert ended.failure["message"] == "the process was ended by SIGTERM"
        assert not list(Path(store.url).rglob(".tmp-*"))

    def test_sigterm_in_a_library_that_does_not_come_back(self, store: Store) -> None:
        spec = kind("toy.stuck").spec({})
        process = start(store_spec(store, spec))
        assert process.stdout.readline()
        time.sleep(0.5)
        asked = time.monotonic()
        process.terminate()
        assert wait(process).code == 75
        assert 2 < time.monotonic() - asked < 15

    def test_the_parent_dies(self, store: Store) -> None:
        spec = squares(n=1000, chunk_size=1, sleep_s=0.05)
        process = start(store_spec(store, spec), "--exit-with-parent", stdin=subprocess.PIPE)
        _await_chunks(store, spec, 2)
        process.stdin.close()
        process.stdin = None
        assert wait(process, timeout=20).code == 75

    def test_nobody_listens(self, store: Store) -> None:
        """The flow's end of the pipe is gone, but the shard was not asked to end with it."""
        spec = squares(n=20, chunk_size=1, sleep_s=0.02)
        process = start(store_spec(store, spec))
        process.stdout.close()
        assert process.wait(60) == 0
        process.stderr.close()
        Shard(store, spec.path).verify()

    def test_sigkill_at_random_points(self, either_store: Store, request: pytest.FixtureRequest) -> None:
        store = either_store
        # 20 chunks of at least 0.3 s: on the fastest machine, every kill but perhaps the last finds it at work.
        spec = squares(n=200, chunk_size=10, sleep_s=0.3)
        undisturbed = Store(f"memory://undisturbed-{spec.hash}")
        run_shard(undisturbed, spec)
        url = store_spec(store, spec)
        rng = random.Random(0)
        kills = KILLS[request.node.callspec.params["either_store"]]
        left = [_kill_after(start(url), rng.uniform(0.4, 1.4)) for _ in range(kills)]
        ended = run(url)
        assert ended.code == 0, ended.stderr
        assert any(code == -signal.SIGKILL for code in left)
        assert result_bytes(store, spec) == result_bytes(undisturbed, spec)
        assert Shard(store, spec.path).table("squares").equals(Shard(undisturbed, spec.path).table("squares"))

    def test_two_writers_at_once(self, either_store: Store) -> None:
        spec = squares(n=60, chunk_size=5, sleep_s=0.05)
        url = store_spec(either_store, spec)
        both = [wait(process) for process in (start(url), start(url))]
        assert [ended.code for ended in both] == [0, 0], both
        Shard(either_store, spec.path).verify()
        alone = Store(f"memory://alone-{spec.hash}")
        run_shard(alone, spec)
        assert result_bytes(either_store, spec) == result_bytes(alone, spec)

    def test_two_writers_that_differ(self, either_store: Store) -> None:
        """Even where a result is not reproducible, the one that counts is all of a piece."""
        spec = kind("toy.unstable").spec({"chunks": 6})
        url = store_spec(either_store, spec)
        first = start(url)
        _await_chunks(either_store, spec, 2)
        both = [wait(process) for process in (first, start(url), start(url))]
        assert [ended.code for ended in both] == [0, 0, 0], both
        shard = Shard(either_store, spec.path)
        shard.verify()
        digests = [hashlib.sha256(value).hexdigest() for value in shard.table("bytes")["bytes"].to_pylist()]
        assert shard.json("digests") == digests


def _await_chunks(store: Store, spec: TaskSpec, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(store.list(f"{spec.path}/chunks")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _kill_after(process: subprocess.Popen[str], seconds: float) -> int:
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return process.returncode


def test_idle_threads_sleep_soon_unless_the_user_says_how_they_wait() -> None:
    assert thread_settings(None, {}) == {"GOMP_SPINCOUNT": SPINS}
    assert thread_settings(3, {})["OMP_NUM_THREADS"] == "3"
    assert "GOMP_SPINCOUNT" not in thread_settings(3, {"OMP_WAIT_POLICY": "active"})
    assert "GOMP_SPINCOUNT" not in thread_settings(3, {"GOMP_SPINCOUNT": "7"})
