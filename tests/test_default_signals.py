"""Tests that were started in the background interrupt what they start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

STARTED_BY_A_SCRIPT = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
import tests.default_signals
subprocess.run([sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT).__name__)"], check=True)
"""


def test_what_tests_in_the_background_start_can_be_interrupted() -> None:
    command = [sys.executable, "-c", STARTED_BY_A_SCRIPT]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "default_int_handler"
