"""A trial as a vLLM request: instructions in plain data for the worker, and a salt for the prefix cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from tasks.engines.interface import Edit, Trial

KEY = "tomograph"
"""The request's instructions lie under this key of its sampling parameters' `extra_args`."""

END = 2**62
"""A position beyond every sequence."""


@dataclass(frozen=True)
class Instructions:
    """What a worker must know of a trial. All fields are plain data."""

    slot: int
    """Where the worker keeps the trial's state; the driver hands slots out."""
    serial: int
    """Different for every request of an engine: a new serial in a slot is a new trial."""
    prompt_length: int
    first: int
    """The edit touches positions first to stop - 1."""
    stop: int
    row: int
    """Bank row, -1 without an edit."""
    value: float | None
    reconstruct: bool
    seed: int
    max_new_tokens: int
    temperature: float
    top_p: float

    @classmethod
    def of(cls, trial: Trial, slot: int, serial: int) -> Instructions:
        edit, length = trial.edit, len(trial.prompt)
        first, stop = edited_range(edit, length)
        return cls(
            slot=slot,
            serial=serial,
            prompt_length=length,
            first=first,
            stop=stop,
            row=-1 if edit is None else edit.row,
            value=None if edit is None else edit.value,
            reconstruct=edit is not None and edit.mode == "reconstruct",
            seed=trial.seed,
            max_new_tokens=trial.max_new_tokens,
            temperature=trial.temperature,
            top_p=trial.top_p,
        )


def edited_range(edit: Edit | None, prompt_length: int) -> tuple[int, int]:
    """Absolute positions (first, stop) that an edit touches, stop excluded."""
    if edit is None:
        return 0, 0
    first = 0 if edit.scope == "all" else prompt_length - 1
    return first, prompt_length if edit.scope == "last" else END


def cache_salt(edit: Edit | None, prompt_length: int, bank_digest: str) -> str | None:
    """What keeps the keys and values of an edited request apart in the prefix cache; None for a plain request.

    A block of keys and values may be used again by whoever reads the same tokens under the same edit. Before the
    first edited position a request is like any other, so the salt names that position: `internals` puts the salt
    into the hash of the block that holds it, and through the chain of hashes into every later block. The trials of a
    prompt then share its clean part whatever their edits, and all of it when their edits are the same.
    (Where vLLM places the salt itself, it goes into the first block: as right, and shares less.)
    """
    if edit is None:
        return None
    first, _ = edited_range(edit, prompt_length)
    what = json.dumps([bank_digest, edit.row, edit.value, edit.scope, edit.mode])
    return f"{KEY}:{hashlib.sha256(what.encode()).hexdigest()[:32]}@{first}"


def salted_position(salt: str | None) -> int | None:
    """The first edited position that one of our salts names; None for any other salt."""
    if salt is None or not salt.startswith(f"{KEY}:"):
        return None
    return int(salt.rpartition("@")[2])


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
