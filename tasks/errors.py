"""What can go wrong with a shard, sorted by what to do about it.

``BadInput`` is for the user to change, ``TransientError`` is worth another attempt, ``CorruptObject`` says
that stored data is not what its manifest promises. Everything else is a bug.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

VALUE_LENGTH_SHOWN = 200


class BadInput(ValueError):
    """Something the user gave can't be used. Trying again changes nothing.

    Args:
        field: where the value was given, such as ``"params.trials"``.
        value: what was given; long values are cut in the message.
        problem: what is wrong with it.
        remedy: what to do.
    """

    def __init__(self, field: str, value: Any, problem: str, remedy: str) -> None:
        super().__init__(field, value, problem, remedy)
        self.field = field
        self.value = value
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        shown = repr(self.value)
        if len(shown) > VALUE_LENGTH_SHOWN:
            shown = shown[:VALUE_LENGTH_SHOWN] + "..."
        return f"{self.field} = {shown}: {self.problem}; {self.remedy}"

    @classmethod
    def from_validation(cls, error: ValidationError, prefix: str = "params") -> BadInput:
        """The first complaint of pydantic, with the others counted."""
        first, *others = error.errors(include_url=False)
        raised = first.get("ctx", {}).get("error")
        if isinstance(raised, BadInput):
            return raised
        location = ".".join(str(part) for part in (prefix, *first["loc"]))
        more = f" (and {len(others)} more such errors)" if others else ""
        if first["type"] == "missing":
            return cls(location, None, "is missing", f"give it a value{more}")
        if first["type"] == "extra_forbidden":
            return cls(location, first["input"], "there is no such field", f"remove it or correct its name{more}")
        message = first["msg"].removeprefix("Value error, ")
        return cls(location, first["input"], "can't be used", message[:1].lower() + message[1:] + more)


class StoreError(BadInput):
    """The store can't be used as it is: no such bucket, no credentials, no permission, no space left."""


class TransientError(RuntimeError):
    """A fault that passes: another attempt can succeed."""


class CorruptObject(RuntimeError):
    """A stored object is missing or is not what its manifest promises."""
