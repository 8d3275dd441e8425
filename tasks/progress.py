"""What a running shard says: one JSON object a line on its standard output."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Report = Callable[[dict[str, Any]], None]

PROGRESS_INTERVAL_SECONDS = 0.2


def silent(event: dict[str, Any]) -> None:
    """Tells nobody."""


def take_stdout() -> Report:
    """Keep the real standard output for events, and send what libraries print there to standard error.

    Call it before libraries are loaded, so that none keeps the old file descriptor.
    """
    sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    lock = threading.Lock()

    def report(event: dict[str, Any]) -> None:
        line = (json.dumps(event, ensure_ascii=False, default=str) + "\n").encode(errors="replace")
        with lock, contextlib.suppress(BrokenPipeError):  # nobody listens any more; the work goes on
            while line:
                line = line[os.write(descriptor, line) :]

    return report


class EventHandler(logging.Handler):
    """Log records as events."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report({"event": "log", "message": f"{record.levelname.lower()}: {record.getMessage()}"})


class Throttle:
    """Lets an event of progress through when it is the last one or the one before is old enough."""

    def __init__(self, interval: float = PROGRESS_INTERVAL_SECONDS) -> None:
        self._interval = interval
        self._next = 0.0

    def passes(self, *, last: bool) -> bool:
        now = time.monotonic()
        if not last and now < self._next:
            return False
        self._next = now + self._interval
        return True
