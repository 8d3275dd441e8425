"""JSON events of a text that may be damaged or end too early, and the way on behind the damage."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import ijson

from tasks.json_stream.nonfinite import VALUES, StandIns

# The C backend comes with ijson's wheels. Its others are fifty times slower, or need a library of the system.
_BACKEND = ijson.get_backend("yajl2_c")

PIECE_BYTES = 1024
"""How closely a place of damage is known; smaller pieces cost time."""

Event = tuple[str, Any]

_MOST_SPACE = 40
"""White space before the first key of an object that reading goes on with."""
_BESIDE_KEY = _MOST_SPACE + 24
"""Bytes of the beginning of such an object beside its key, at most."""
_BOM = b"\xef\xbb\xbf"


class Damage(Exception):
    """The text can't be read on from here as it should be. `byte`: everything before it was read."""

    def __init__(self, byte: int, problem: str, *, end: bool = False) -> None:
        super().__init__(problem)
        self.byte, self.problem, self.end = byte, problem, end


@dataclass(frozen=True)
class Loss:
    """A part of the text that could not be read."""

    start: int
    """Everything before this byte was read."""
    stop: int
    """Reading went on at this byte."""
    where: str
    problem: str

    def describe(self) -> str:
        place = f"up to byte {self.stop}" if self.stop > self.start else "where the text ends"
        return f"not read after byte {self.start}, {place}, {self.where}: {self.problem}"


class Events:
    """The events of a text. They are taken from `stream`; after a `Damage`, `resume` may open a new one.

    Args:
        next_piece: the text's bytes, piece by piece; nothing at its end.
        starts: for each key that only the objects begin with at which reading can go on: the text that stands before
            such an object in a whole document, as far as its events matter ("" for a document itself).
    """

    def __init__(self, next_piece: Callable[[], bytes], starts: Mapping[str, str]) -> None:
        self._next_piece, self._starts = next_piece, starts
        keys = "|".join(map(re.escape, starts))
        self._start = re.compile(rf'\{{\s{{0,{_MOST_SPACE}}}"({keys})"\s{{0,8}}:'.encode())
        self._start_bytes = _BESIDE_KEY + max(len(key.encode()) for key in starts)
        """A start that was cut in two lies within so many bytes."""
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

    def resume(self) -> str | None:
        """Go on with the next object behind the damage that begins with a key of `starts`, and return this key.

        The stream begins with the events of the text that stands before such an object. None: there is none.
        Objects that end shortly before the damage may come again.
        """
        at = max(self.byte - self._start_bytes, self._block_start - len(self._before), self._resumed_at + 1)
        text, start = self._before + self._block + self._stand_ins.held, self._block_start - len(self._before)
        text, start = text[at - start :], at
        while (found := self._start.search(text)) is None:
            piece = self._next_piece()
            if not piece:
                self.byte = start + len(text)
                return None
            kept = text[-self._start_bytes :]
            text, start = kept + piece, start + len(text) - len(kept)
        self.byte = self._resumed_at = start + found.start()
        self._block, self._block_start, self._before = b"", self.byte, b""
        self._pushed, self._stand_ins = text[found.start() :], StandIns()
        key = found[1].decode()
        self.stream = chain.from_iterable(self._pieces(self._starts[key].encode()))
        return key

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
        """The beginning of such an object inside of another value means that the value's own end is missing."""
        if key in self._starts:
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
        self._before = (self._before + self._block)[-self._start_bytes :]
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
