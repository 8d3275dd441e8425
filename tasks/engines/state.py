"""The state of a running batch on the device, in tensors that stay where they are, and its one step.

A step reads one token of every row and draws the next. It needs nothing from the host and tells the host nothing, so
it can be recorded once and replayed (`graphs`), and the host learns later which rows have ended (`outbox`). A row
that has ended stays as it is until another trial is placed in it.

B rows, S new tokens at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from tasks.engines.bank import Bank
from tasks.engines.edit import Found, TokenEdits
from tasks.engines.interface import Trial
from tasks.engines.sampling import uniforms


@dataclass(eq=False)
class BatchState:
    """One entry per row."""

    live: Tensor
    """[B] bool: the row's trial is not finished."""
    next_input: Tensor
    """[B] int64: the token that the coming pass reads."""
    prompt_length: Tensor
    """[B] int64"""
    steps: Tensor
    """[B] int64: tokens generated so far."""
    limit: Tensor
    """[B] int64: tokens to generate at most."""
    temperature: Tensor
    """[B] float32"""
    top_p: Tensor
    """[B] float32"""
    row: Tensor
    """[B] int64: bank row of the trial's edit, -1 for none."""
    value: Tensor
    """[B] float32: the activation to set, NaN for none."""
    reconstruct: Tensor
    """[B] bool"""
    persists: Tensor
    """[B] bool: generated tokens are edited too (scopes `decode` and `all`)."""
    applied: Tensor
    """[B] int32: positions edited so far."""
    f: Tensor
    """[B] float32: activation before the edit of the last prompt position; NaN without an edit."""
    relative_delta: Tensor
    """[B] float32: |h' - h| / |h| of that edit; NaN without one."""
    uniforms: Tensor
    """[B, S] float64: the trial's random number for each token."""
    tokens: Tensor
    """[B, S] int64: generated tokens."""

    @classmethod
    def empty(cls, size: int, capacity: int, device: torch.device) -> BatchState:
        one = lambda dtype, *shape: torch.zeros(size, *shape, dtype=dtype, device=device)  # noqa: E731
        state = cls(
            live=one(torch.bool),
            next_input=one(torch.int64),
            prompt_length=one(torch.int64),
            steps=one(torch.int64),
            limit=one(torch.int64),
            temperature=one(torch.float32),
            top_p=one(torch.float32),
            row=one(torch.int64),
            value=one(torch.float32),
            reconstruct=one(torch.bool),
            persists=one(torch.bool),
            applied=one(torch.int32),
            f=one(torch.float32),
            relative_delta=one(torch.float32),
            uniforms=one(torch.float64, capacity),
            tokens=one(torch.int64, capacity),
        )
        state.prompt_length.fill_(1)
        state.limit.fill_(1)
        state.temperature.fill_(1.0)
        state.top_p.fill_(1.0)
        state.row.fill_(-1)
        return state

    def place(self, rows: Sequence[int], trials: Sequence[Trial], edited_before: Sequence[int]) -> None:
        """Begin trials in rows. edited_before: positions of each trial's prefix that were edited."""
        capacity = self.uniforms.shape[1]
        edits = [trial.edit for trial in trials]
        drawn = np.zeros((len(trials), capacity))
        for i, trial in enumerate(trials):
            drawn[i, : trial.max_new_tokens] = uniforms(trial.seed, trial.max_new_tokens)
        values = [float("nan") if edit is None or edit.value is None else edit.value for edit in edits]
        new = {
            "live": np.ones(len(trials), bool),
            "next_input": np.array([trial.prompt[-1] for trial in trials]),
            "prompt_length": np.array([len(trial.prompt) for trial in trials]),
            "steps": np.zeros(len(trials), np.int64),
            "limit": np.array([trial.max_new_tokens for trial in trials]),
            "temperature": np.array([trial.temperature for trial in trials], np.float32),
            "top_p": np.array([trial.top_p for trial in trials], np.float32),
            "row": np.array([-1 if edit is None else edit.row for edit in edits]),
            "value": np.array(values, np.float32),
            "reconstruct": np.array([edit is not None and edit.mode == "reconstruct" for edit in edits]),
            "persists": np.array([edit is not None and edit.scope != "last" for edit in edits]),
            "applied": np.array(edited_before, np.int32),
            "f": np.full(len(trials), np.nan, np.float32),
            "relative_delta": np.full(len(trials), np.nan, np.float32),
            "uniforms": drawn,
            "tokens": np.zeros((len(trials), capacity), np.int64),
        }
        index = to_device(np.array(rows), self.live.device)
        for name, values in new.items():
            getattr(self, name).index_copy_(0, index, to_device(values, self.live.device))

    def select(self, rows: Tensor, live: Tensor) -> BatchState:
        """A state of other size: row i of it is row rows[i] of this one, and goes on where live[i]."""
        chosen = BatchState(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})
        chosen.live &= live
        return chosen

    @property
    def at(self) -> Tensor:
        """[B] int64: place of the coming token in the suffix; a finished row stays at its last."""
        return torch.minimum(self.steps, self.limit - 1)

    @property
    def positions(self) -> Tensor:
        """[B] int64: position of the coming token, 0-based in prompt + generated tokens."""
        return self.prompt_length - 1 + self.at

    def aim(self, edits: TokenEdits, found: Found, bank: Bank) -> None:
        """Before a pass: say which rows it edits, and forget what the last pass found."""
        now = self.live & (self.persists | (self.steps == 0))
        edits.fill(bank, torch.where(now, self.row, -1), self.value, self.reconstruct)
        found.clear()

    def count(self, found: Found) -> None:
        """After a pass: add what it found to the rows' account."""
        first = self.steps == 0
        self.applied += found.applied
        self.f.copy_(torch.where(first, found.f, self.f))
        self.relative_delta.copy_(torch.where(first, found.relative_delta, self.relative_delta))

    def uniform_now(self) -> Tensor:
        """[B] float64: each row's random number for the coming token."""
        return self.uniforms.gather(1, self.at[:, None]).squeeze(1)

    def append(self, token: Tensor, end_tokens: Tensor) -> None:
        """After sampling: store token [B] in the live rows and see which have ended."""
        at = self.at[:, None]
        kept = torch.where(self.live, token, self.tokens.gather(1, at).squeeze(1))
        self.tokens.scatter_(1, at, kept[:, None])
        self.next_input.copy_(kept)
        self.steps += self.live
        ended = (self.steps >= self.limit) | torch.isin(kept, end_tokens)
        self.live &= ~ended


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device that the host does not wait for."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
