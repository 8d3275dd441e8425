"""Regular expressions of a scenario: Python's syntax, in bounded time.

Python's own engine can take exponential time and holds the interpreter lock meanwhile, so that nothing ends the
process any more. `regex` reads the same syntax, lets other threads run and gives up after a time of computing.
"""

from __future__ import annotations

import re
from functools import cache

import regex

from tasks.errors import BadInput

LONGEST = 4000
MOST_REPEATS = 1000
PROBE_LENGTH = 100
PROBE_SECONDS = 0.5
READ_SECONDS = 10.0
"""Of computing, by all threads. A pattern that is none of the hopeless ones takes microseconds."""

REMEDY = "let no repetition stand within another that can match the same text, as in (a+)+ or (a|aa)*"


def check(pattern: str) -> str:
    """The pattern, if it can be used.

    Raises:
        ValueError: it is no regular expression, or one that takes too long even on simple texts.
    """
    if len(pattern) > LONGEST:
        raise ValueError(f"a regular expression of {len(pattern):,} characters; the most are {LONGEST:,}")
    if any(int(n) > MOST_REPEATS for n in re.findall(r"\d+", " ".join(re.findall(r"\{([\d,]+)\}", pattern)))):
        raise ValueError(f"a repetition of more than {MOST_REPEATS} times in a regular expression; use + or *")
    try:
        re.compile(pattern)  # the syntax is Python's: `regex` knows more
        compiled = _compiled(pattern)
        for letter in sorted({*"a0 ", *filter(str.isalnum, pattern)}):  # what it asks for further on is there too
            compiled.match(f"{letter * PROBE_LENGTH}\0{pattern}", timeout=PROBE_SECONDS, concurrent=True)
    except TimeoutError:
        text = f"{letter!r} times {PROBE_LENGTH}"
        raise ValueError(f"this regular expression takes exponential time, on {text} for example; {REMEDY}") from None
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression ({error})") from error
    return pattern


def match(pattern: str, text: str, field: str) -> regex.Match[str] | None:
    """Where ``pattern`` matches at the start of ``text``, upper or lower case. Raises BadInput: it takes too long."""
    return _timed(_compiled(pattern).match, pattern, text, field)


def search(pattern: str, text: str, field: str) -> regex.Match[str] | None:
    """Where ``pattern`` matches first. Raises BadInput: it takes too long."""
    return _timed(_compiled(pattern).search, pattern, text, field)


def groups(pattern: str) -> set[str]:
    """Names of the groups of a pattern that was checked."""
    return set(_compiled(pattern).groupindex)


@cache
def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern, regex.IGNORECASE)


def _timed(method, pattern: str, text: str, field: str) -> regex.Match[str] | None:
    try:
        return method(text, timeout=READ_SECONDS, concurrent=True)
    except TimeoutError as error:
        problem = f"takes more than {READ_SECONDS:g} s to read a text of {len(text):,} characters"
        raise BadInput(field, pattern, problem, REMEDY) from error
