"""Folders that go with what they were made for, whatever happens to the process."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys

import pytest

from tasks.places.cache import cache_root
from tasks.places.scratch import Scratch
from tests.models.conftest import ROOT

pytestmark = pytest.mark.usefixtures("cache")


class Owner:
    pass


def left() -> list[str]:
    return sorted(path.name for path in (cache_root() / "offloaded").iterdir())


def test_it_goes_with_the_block():
    with Scratch("offloaded") as scratch:
        (scratch.folder / "weights").write_text("0")
        assert len(left()) == 2
    assert left() == []
    with pytest.raises(ZeroDivisionError), Scratch("offloaded"):
        raise ZeroDivisionError
    assert left() == []


def test_it_goes_with_its_owner():
    owner = Owner()
    with Scratch("offloaded") as scratch:
        scratch.give_to(owner)
    folder = scratch.folder
    del scratch
    gc.collect()
    assert folder.is_dir()
    with Scratch("offloaded"):  # one that makes its own leaves those in use alone
        assert folder.is_dir()
    del owner
    gc.collect()
    assert left() == []


IN_USE = """
import os, signal
from tasks.places.scratch import Scratch
class Owner: pass
owner = Owner()
with Scratch("offloaded") as scratch:
    (scratch.folder / "weights").write_text("0")
    scratch.give_to(owner)
{then}
"""


@pytest.mark.parametrize(
    ("then", "code", "remain"),
    [
        ("raise SystemExit(3)", 3, 0),
        ("raise RuntimeError", 1, 0),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, 2),
    ],
)
def test_it_goes_with_the_process_and_what_a_killed_one_left_goes_with_the_next(then, code, remain):
    done = subprocess.run([sys.executable, "-c", IN_USE.format(then=then)], cwd=ROOT, env=os.environ, timeout=60)
    assert done.returncode == code
    assert len(left()) == remain
    with Scratch("offloaded"):
        assert len(left()) == 2
    assert left() == []
