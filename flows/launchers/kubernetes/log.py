"""The lines of a container's log, each once, though the connection that brings them is cut now and then.

A log is asked for from a time on, of which the API counts whole seconds, and lines of standard output and standard
error may be a little out of order. So a log that was cut is asked for from a while before its newest line on, and what
has been seen of that is left out.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Protocol

import urllib3

from flows.launchers.events import LineReader

OVERLAP_SECONDS = 2


class Connection(Protocol):
    """Opens the log, from a time on."""

    def __call__(self, since: str | None) -> urllib3.BaseHTTPResponse: ...


class Log:
    """A container's log, read in as many goes as it takes."""

    def __init__(self, connect: Connection) -> None:
        self._connect = connect
        self._response: urllib3.BaseHTTPResponse | None = None
        self._recent: deque[tuple[float, int]] = deque()
        self._untimed: set[str] = set()
        self._newest: float | None = None

    def read(self, *, to_its_end: bool) -> Iterator[str]:
        """New lines, until the log ends or is cut.

        Args:
            to_its_end: the container has ended, so what comes last is a line even if nothing ends it.

        Raises:
            ApiFault, urllib3.exceptions.HTTPError, OSError: it can't be opened, or was cut.
        """
        since = self._since()
        self._response = response = self._connect(since)
        seen = Counter(line for _, line in self._recent)
        reader = LineReader()
        try:
            for piece in response.stream(decode_content=False):
                yield from self._new(reader.feed(piece), seen)
            if to_its_end:
                yield from self._new(reader.end(), seen)
        finally:
            self._response = None
            response.close()

    def interrupt(self) -> None:
        """End a read that waits in another thread."""
        if response := self._response:
            try:
                response.shutdown()
            except (OSError, ValueError, RuntimeError):  # it has just ended by itself
                return

    def _since(self) -> str | None:
        if self._newest is None:
            return None
        return datetime.fromtimestamp(self._start(self._newest), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _new(self, lines: list[str], seen: Counter[int]) -> Iterator[str]:
        for line in lines:
            time, text = _timed(line)
            if time is None:  # not the container's: something on the way says why there is no log
                if line not in self._untimed:
                    self._untimed.add(line)
                    yield line
                continue
            key = hash(line)
            if seen[key]:
                seen[key] -= 1
                continue
            self._keep(time, key)
            yield text

    def _keep(self, time: float, key: int) -> None:
        self._newest = max(time, self._newest or time)
        self._recent.append((time, key))
        while self._recent[0][0] < self._start(self._newest):
            self._recent.popleft()

    @staticmethod
    def _start(newest: float) -> int:
        return int(newest) - OVERLAP_SECONDS


def _timed(line: str) -> tuple[float | None, str]:
    time, _, text = line.partition(" ")
    try:
        return datetime.fromisoformat(time).timestamp(), text
    except ValueError:
        return None, line
