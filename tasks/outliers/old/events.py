"""JSON events of a text that may be damaged or end too early, and the way on behind the damage."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Literal

import ijson

from tasks.outliers.old.nonfinite import VALUES, StandIns

# The C backend comes with ijson's wheels. Its others are fifty times slower, or need a library of the system.
_BACKEND = ijson.get_backend("yajl2_c")

PIECE_BYTES = 1024
"""How closely a place of damage is known; smaller pieces cost time."""

Event = tuple[str, Any]

_START = re.compile(rb'\{\s{0,40}"(batch_id|analysis_summary)"\s{0,8}:')
_START_BYTES = 80
"""A start that was cut in two lies within so many bytes."""
_BOM = b"\xef\xbb\xbf"


class Damage(Exception):
    """The text can't be read on from here as it should be. `byte`: everything before it was read."""

    def __init__(self, byte: int, problem: str, *, end: bool = False) -> None:
        super().__init__(problem)
        self.byte, self.problem, self.end = byte, problem, end


class Events:
    """The events of a text. They are taken from `stream`; after a `Damage`, `resume` may open a new one.

    Args:
        next_piece: the text's bytes, piece by piece; nothing at its end.
    """

    def __init__(self, next_piece: Callable[[], bytes]) -> None:
        self._next_piece = next_piece
        self._stand_ins = StandIns()
        self._any_stand_ins = False
        self._pushed = b""
        self._block, self._block_start = b"", 0
        self._before = b""
        """End of the text before the block."""
        self._resumed_at = -1
        self.byte = 0
        """Everything before this byte has been read."""
        self.stream: Iterator[Event] = chain.from_iterable(self._pieces(b""))

    def damage(self, problem: str) -> Damage:
        """What was read last is JSON, but not what should be there."""
        return Damage(self.byte, problem)

    def resume(self) -> Literal["document", "batch"] | None:
        """Go on with the next document or batch behind the damage, as if the text began there. None: there is none.

        The stream of a batch begins with the events of ``{"batch_results": [``.
        """
        at = max(self.byte - _START_BYTES, self._block_start - len(self._before), self._resumed_at + 1)
        text, start = self._before + self._block + self._stand_ins.held, self._block_start - len(self._before)
        text, start = text[at - start :], at
        while (found := _START.search(text)) is None:
            piece = self._next_piece()
            if not piece:
                self.byte = start + len(text)
                return None
            kept = text[-_START_BYTES:]
            text, start = kept + piece, start + len(text) - len(kept)
        self.byte = self._resumed_at = start + found.start()
        self._block, self._block_start, self._before = b"", self.byte, b""
        self._pushed, self._stand_ins = text[found.start() :], StandIns()
        is_batch = found[1] == b"batch_id"
        self.stream = chain.from_iterable(self._pieces(b'{"batch_results":[' if is_batch else b""))
        return "batch" if is_batch else "document"

    def value(self, first: Event, *, allowed: str | None = None) -> Any:
        """The whole value that begins with the event `first`; its own keys may have `allowed`. Raises Damage."""
        kind, content = first
        if kind == "start_map":
            found: dict[str, Any] = {}
            while (key := self.key(allowed=allowed)) is not None:
                found[key] = self.value(next(self.stream))
            return found
        if kind == "start_array":
            items = []
            while (event := next(self.stream))[0] != "end_array":
                items.append(self.value(event))
            return items
        return content

    def skip(self, first: Event) -> None:
        """Read over the whole value that begins with the event `first`. Raises Damage."""
        depth = _STEP.get(first[0], 0)
        if not depth:
            return
        for kind, content in self.stream:
            if kind == "map_key":
                self._check(content)
            elif kind in _STEP:
                depth += _STEP[kind]
                if not depth:
                    return

    def key(self, *, allowed: str | None = None) -> str | None:
        """The next key of an object; None at its end. Raises Damage."""
        kind, key = next(self.stream)
        if kind == "end_map":
            return None
        if key != allowed:
            self._check(key)
        return key

    def _check(self, key: str) -> None:
        """The beginning of a batch or document inside of another value means that the value's own end is missing."""
        if key == "batch_id" or key == "analysis_summary":
            raise self.damage(f"{key!r} is not expected here")

    def _pieces(self, opening: bytes) -> Iterator[list[Event]]:
        events = ijson.sendable_list()
        parser = _BACKEND.basic_parse_coro(events, use_float=True)
        if opening:
            parser.send(opening)
        while self._next_block():
            for start in range(0, len(self._block), PIECE_BYTES):
                self.byte = self._block_start + start
                try:
                    parser.send(self._block[start : start + PIECE_BYTES])
                except ijson.JSONError as error:
                    yield self._with_values(events)
                    raise Damage(self.byte, _first_line(error)) from error
                yield self._with_values(events)
                events.clear()
        # What the parser still holds back is an unfinished number or word: it is not asked for it.
        self.byte = self._block_start + len(self._stand_ins.held)
        raise Damage(self.byte, "the text ends here", end=True)

    def _next_block(self) -> bool:
        self._block_start += len(self._block)
        self._before = (self._before + self._block)[-_START_BYTES:]
        self._block = b""
        while not self._block:
            piece, self._pushed = self._pushed or self._next_piece(), b""
            if not piece:
                return False
            if self._block_start == 0 and piece.startswith(_BOM):
                piece, self._block_start = piece[len(_BOM) :], len(_BOM)
            self._block = self._stand_ins(piece)
            self._any_stand_ins |= self._stand_ins.seen
        return True

    def _with_values(self, events: list[Event]) -> list[Event]:
        if not self._any_stand_ins:
            return events
        return [("number", VALUES[v]) if kind == "string" and v in VALUES else (kind, v) for kind, v in events]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(". ")


_STEP = {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}
