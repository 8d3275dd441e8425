"""NaN and infinities, as Python's json.dump writes them: no JSON, so they are put in a form that a parser accepts."""

from __future__ import annotations

import math
import re

STAND_INS = {b"NaN": b'"\x7f"', b"Infinity": b'"\x7f+inf."', b"-Infinity": b'"\x7f-inf.."'}
"""Strings that no file holds, each as long as what it stands for: places in the text stay the same."""
VALUES = {"\x7f": math.nan, "\x7f+inf.": math.inf, "\x7f-inf..": -math.inf}
"""What a stand-in means, once parsed."""

_LONGEST = max(map(len, STAND_INS))
_STRING_OR_WORD = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|-?Infinity|NaN', re.DOTALL)
_STRING_END = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_MAY_GO_ON = re.compile(rb"[-A-Za-z]{1,%d}\Z" % _LONGEST)


class StandIns:
    """Puts the stand-ins into a text that comes in pieces, outside of its strings."""

    def __init__(self) -> None:
        self.seen = False
        """Whether there was anything to replace."""
        self.held = b""
        """End of the last piece that may be the beginning of a word; it comes first in the next one."""
        self._in_string = False

    def __call__(self, piece: bytes, *, last: bool = False) -> bytes:
        """The next piece of the text, as far as it is certain."""
        text = self.held + piece
        cut = len(text) if last else _certain(text)
        text, self.held = text[:cut], text[cut:]
        if b"NaN" in text or b"Infinity" in text:
            return self._replaced(text)
        quotes = text.count(b'"') if b"\\" not in text else _ESCAPE.sub(b"", text).count(b'"')
        self._in_string ^= quotes % 2 == 1
        return text

    def _replaced(self, text: bytes) -> bytes:
        start = 0
        if self._in_string:
            end = _STRING_END.match(text)
            if end is None:
                return text
            start = end.end()
        self._in_string = False
        return text[:start] + _STRING_OR_WORD.sub(self._one, text[start:])

    def _one(self, match: re.Match[bytes]) -> bytes:
        found = match[0]
        if not found.startswith(b'"'):
            self.seen = True
            return STAND_INS[found]
        quotes = _ESCAPE.sub(b"", found).count(b'"')
        self._in_string = quotes == 1  # the piece ends within this string
        return found


def _certain(text: bytes) -> int:
    """Where to cut, so that no word that is to be replaced and no escape is cut in two."""
    match = _MAY_GO_ON.search(text)
    cut = match.start() if match else len(text)
    backslashes = cut - len(text[:cut].rstrip(b"\\"))
    return cut - backslashes % 2
