"""Whether a flow process lives, asked through the kernel's locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.holders import domain, holder, holder_lives
from tests.flows.processes import wait_until

HOLD = "import time; from flows.holders import holder; print(holder(), flush=True); time.sleep(600)"


def start_holder() -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def holder_of_a_dead_process() -> str:
    process, name = start_holder()
    process.kill()
    process.wait()
    return name


def test_this_process_lives_under_one_name() -> None:
    assert holder() == holder()
    assert holder_lives(holder())


def test_a_fork_has_a_name_of_its_own(tmp_path: Path) -> None:
    mine = holder()
    if (child := os.fork()) == 0:
        try:
            (tmp_path / "name").write_text(holder())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    theirs = (tmp_path / "name").read_text()
    assert theirs != mine
    assert not holder_lives(theirs)
    assert holder_lives(mine)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_is_dead_once_its_process_has_ended(number: signal.Signals, runtime_folder: Path) -> None:
    process, name = start_holder()
    assert holder_lives(name)
    process.send_signal(number)
    process.wait()
    wait_until(lambda: not holder_lives(name), 2, "its lock is free")
    assert not (runtime_folder / "holders" / f"{name}.lock").exists()


def test_a_name_that_nobody_had_is_dead() -> None:
    assert not holder_lives("1-abc")


def test_each_runtime_folder_has_an_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = domain()
    program = "from flows.holders import domain; print(domain())"
    again = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == first
    monkeypatch.setenv("TOMOGRAPH_RUNTIME_DIR", str(tmp_path / "another"))
    assert domain() != first
