"""What can go wrong with a shard, sorted by what to do about it.

``BadInput`` is for the user to change, ``TransientError`` is worth another attempt, ``CorruptObject`` says
that stored data is not what its manifest promises. Everything else is a bug.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ValidationError

from tasks.places.credentials import LONGEST, hidden

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_TRANSIENT, EXIT_INTERRUPTED = 0, 1, 2, 75, 130
"""How every command ends; 75 is EX_TEMPFAIL of sysexits.h, 130 a shell's number for Ctrl-C."""
EXITS = (
    "Exit statuses: 0 done, 1 failed, 2 the input can't be used, 75 a fault that may pass (try again), 130 interrupted."
)

VALUE_LENGTH_SHOWN = 200
TEXT_LENGTH_SHOWN = 1000
NOT_SHOWN = object()
"""Value of a group of settings that are wrong together: the problem names those that matter."""


def shortened(text: str, length: int = VALUE_LENGTH_SHOWN) -> str:
    """``text`` with what is beyond ``length`` characters left out."""
    return text if len(text) <= length else f"{text[:length]}..."


def shown(value: Any) -> str:
    """``value`` as messages show it: on one line, not at megabytes' length, and without credentials."""
    if isinstance(value, str | bytes):  # cut first: a representation of all of it may cost more than there is
        return shortened(repr(hidden(value[:LONGEST])[: VALUE_LENGTH_SHOWN + 1]))
    try:
        return shortened(repr(hidden(value)))
    except (ValueError, RecursionError):  # an integer of thousands of digits, say, or lists within lists
        return f"<{type(value).__name__}>"


class BadInput(ValueError):
    """Something the user gave can't be used. Trying again changes nothing.

    As every error that a command can explain, it says how the command ends (``exit_status``).

    Args:
        field: where the value was given, such as ``"params.trials"``.
        value: what was given; long values are cut in the message, and credentials left out.
        problem: what is wrong with it.
        remedy: what to do.
    """

    exit_status: ClassVar[int] = EXIT_BAD_INPUT

    def __init__(self, field: str, value: Any, problem: str, remedy: str) -> None:
        super().__init__(field, value, problem, remedy)
        self.field = field
        self.value = value
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        problem, remedy = (
            shortened(" ".join(hidden(text).split()), TEXT_LENGTH_SHOWN) for text in (self.problem, self.remedy)
        )
        value = "" if self.value is NOT_SHOWN else f" = {shown(self.value)}"
        return f"{self.field}{value}: {problem}; {remedy}"

    @classmethod
    def from_validation(cls, error: ValidationError, prefix: str = "params", more: str = "") -> BadInput:
        """The first complaint of pydantic, with the others counted; ``more`` ends its remedy."""
        first, *others = error.errors(include_url=False)
        more = (f" (and {len(others)} more such errors)" if others else "") + more
        return cls.from_complaint(first, prefix, more)

    @classmethod
    def from_complaint(cls, complaint: Mapping[str, Any], prefix: str = "", more: str = "") -> BadInput:
        """One of pydantic's complaints (``ValidationError.errors()``); ``more`` ends its remedy."""
        raised = complaint.get("ctx", {}).get("error")
        if isinstance(raised, BadInput):
            return raised
        field = ".".join(shortened(str(part)) for part in ((prefix,) if prefix else ()) + complaint["loc"])
        if complaint["type"] == "missing":
            return cls(field, None, "is missing", f"give it a value{more}")
        if complaint["type"] == "extra_forbidden":
            return cls(field, complaint["input"], "there is no such field", f"remove it or correct its name{more}")
        message = complaint["msg"].removeprefix("Value error, ")
        value = NOT_SHOWN if raised and isinstance(complaint["input"], Mapping | BaseModel) else complaint["input"]
        return cls(field, value, "can't be used", message[:1].lower() + message[1:] + more)


class StoreError(BadInput):
    """The store can't be used as it is: no such bucket, no credentials, no permission, no space left."""


class TransientError(RuntimeError):
    """A fault that passes: another attempt can succeed."""

    exit_status: ClassVar[int] = EXIT_TRANSIENT


class CorruptObject(RuntimeError):
    """A stored object is missing or is not what its manifest promises."""

    exit_status: ClassVar[int] = EXIT_FAILED


EXPLAINED = (BadInput, TransientError, CorruptObject)
"""What a command tells in its message alone, without a traceback."""
