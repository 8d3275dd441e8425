"""Looking at the machine's processes, as an operator would."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil

from flows.launchers.base import Labels


def with_environment(name: str, value: str) -> list[psutil.Process]:
    """Living processes with this environment variable."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(name) == value:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def labelled(text: str) -> list[psutil.Process]:
    """Living processes that carry the labels of a shard and name ``text`` on their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or text not in " ".join(process.cmdline()):
                continue
            if "fork-server" in process.cmdline() and process.parent().cmdline() != process.cmdline():
                continue  # the server of the forks
            if any(name.startswith(Labels.PREFIX) for name in process.environ()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def wait_until(true: Callable[[], object], seconds: float, what: str) -> float:
    """Wait for ``true`` and return the seconds it took."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - started


class Census:
    """Counts the shards that run at a time while the body runs."""

    def __init__(self, text: str) -> None:
        self.most = 0
        self._text = text
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count)

    def _count(self) -> None:
        while not self._stop.wait(0.02):
            self.most = max(self.most, len(labelled(self._text)))

    def __enter__(self) -> Census:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
