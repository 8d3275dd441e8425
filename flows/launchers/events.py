"""Lines of a shard's output as events."""

from __future__ import annotations

import contextlib
import json
from typing import Any

LINE_LIMIT = 4 * 2**20
"""Longer lines, in bytes, are dropped."""


def event_of(line: str) -> dict[str, Any]:
    """A line of the shard's standard output as an event; what is no JSON is a log line."""
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict) and "event" in event:
            return event
    return {"event": "log", "message": line}


class LineReader:
    """Cuts a stream that arrives in pieces into lines."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._too_long = False

    def feed(self, data: bytes) -> list[str]:
        """The lines that ``data`` completes."""
        *whole, rest = (bytes(self._rest) + data).split(b"\n")
        if whole and self._too_long:
            whole.pop(0)
        if whole or not self._too_long:
            self._too_long = len(rest) > LINE_LIMIT
        self._rest = bytearray(b"" if self._too_long else rest)
        return [line.decode(errors="replace").rstrip("\r") for line in whole if len(line) <= LINE_LIMIT]

    def end(self) -> list[str]:
        """What was left without an end of line."""
        return self.feed(b"\n") if self._rest else []
