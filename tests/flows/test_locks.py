"""Locks that several users of a host share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from flows.locks import lock, locked
from tests.requirements import need

REPOSITORY = Path(__file__).parents[2]
ONE, OTHER = 4001, 4002
PROGRAM = """
import sys, time
from flows.holders import domain, holder, holder_lives
from flows.slots import Slot, SlotPool
lease = SlotPool([Slot("gpu-A", "0", 1)]).try_lease()
alive = [holder_lives(name) for name in sys.argv[1:]]
print(domain(), holder(), bool(lease), *alive, flush=True)
sys.stdin.read()
"""


def interpreter() -> Path | None:
    """A Python of this version that any user may run: this one may lie in somebody's home."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = [Path(sys.executable).resolve(), Path("/usr/bin") / name]
    return next((path for path in found if path.exists() and readable(path.parent)), None)


def start(user: int, folder: Path, *holders: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(REPOSITORY), str(Path(pydantic.__file__).parents[1])])
    return subprocess.Popen(
        [str(interpreter()), "-c", PROGRAM, *holders],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "TOMOGRAPH_RUNTIME_DIR": str(folder)},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        user=user,
        group=user,
        extra_groups=[],
    )


def said(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def readable(path: Path) -> bool:
    """Whether any user may read what the tests run."""
    return all(parent.stat().st_mode & 0o005 == 0o005 for parent in (path, *path.parents))


def test_users_of_a_shared_folder_exclude_each_other() -> None:
    need("root", os.getuid() == 0, "the right to become other users")
    if interpreter() is None or not readable(REPOSITORY):
        pytest.skip("other users may not read this checkout, or have no such Python")
    folder = Path("/tmp") / f"tomograph-shared-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o1777)
    try:
        first = start(ONE, folder)
        domain, holder, leased = said(first)
        second = start(OTHER, folder, holder, "1-nobody")
        assert said(second)[0::2] == [domain, "False", "False"]
        assert leased == "True"
        first.kill()
        first.wait()
        third = start(OTHER, folder, holder)
        assert said(third)[2:] == ["True", "False"]
        for process in (second, third):
            process.kill()
            process.wait()
    finally:
        subprocess.run(["rm", "-r", str(folder)], check=True)


def test_files_are_for_whom_their_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, expected in ((0o700, 0o600), (0o1777, 0o666), (0o2770, 0o660)):
        folder = tmp_path / f"{mode:o}"
        folder.mkdir()
        folder.chmod(mode)
        monkeypatch.setenv("TOMOGRAPH_RUNTIME_DIR", str(folder))
        for path in (folder / "gpu.lock", folder / "holders" / "one.lock"):
            descriptor = lock(path)
            assert descriptor is not None
            assert path.stat().st_mode & 0o777 == expected
            os.close(descriptor)


def test_looking_at_a_lock_does_not_take_it(tmp_path: Path) -> None:
    path = tmp_path / "one.lock"
    descriptor = lock(path)
    assert descriptor is not None
    with path.open() as file:
        assert locked(file.fileno())
        os.close(descriptor)
        assert not locked(file.fileno())
    assert lock(path) is not None
