"""What an engine is asked and what it answers. Light: no tensor library.

An engine runs *trials*. A trial is one generation from one prompt with at most one edit of the residual stream.
Trials of one call may differ in prompt, layer, feature, value, scope, mode and seed, and are batched together.
What a trial gives is a function of the trial alone: neither the batch it ran in nor the order of the trials
decides a random number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

Scope = Literal["last", "decode", "all"]
"""Which positions an edit touches.

last    the last position of the prompt; it stays edited in the key-value cache
decode  that position and every generated token that the model reads afterwards
all     every position of the prompt and every generated token that the model reads
"""

Mode = Literal["keep_error", "reconstruct"]
"""keep_error   h' = h + (value - f) w: the SAE's reconstruction error stays in the stream
reconstruct  h' = decode(encode(h) with f := value): the error is dropped, as in the first published style
"""

Position = Literal["last", "final", "decode"]
"""Which positions a capture records: the last of the prompt, the last one read, or every one of scope `decode`."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Set the activation of one bank row to a value."""

    row: int
    """Row of the engine's bank; it names the layer, the feature and the direction written."""
    value: float | None
    """In the bank's unit (raw residual units). None only with mode `reconstruct`: encode and decode, no edit."""
    scope: Scope = "last"
    mode: Mode = "keep_error"

    def __post_init__(self) -> None:
        if self.value is None and self.mode != "reconstruct":
            raise ValueError("Edit.value: None (nothing to set) needs mode='reconstruct'; give a number")
        if self.value is not None and not np.isfinite(self.value):
            raise ValueError(f"Edit.value: {self.value} is not finite; give a finite number")


@dataclass(frozen=True, slots=True)
class Trial:
    """One generation."""

    id: int
    prompt: tuple[int, ...]
    """Token ids, as the tokenizer gives them with its special tokens."""
    seed: int
    """0 to 2^64 - 1: every random number of the trial comes from it."""
    edit: Edit | None = None
    max_new_tokens: int = 40
    temperature: float = 1.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    """Nucleus sampling: the smallest set of tokens whose probability reaches top_p."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError(f"Trial {self.id}: prompt is empty; it needs at least one token")
        if self.max_new_tokens < 1:
            raise ValueError(f"Trial {self.id}: max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"Trial {self.id}: temperature is {self.temperature}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Trial {self.id}: top_p is {self.top_p}; it must lie in (0, 1]")


@dataclass(frozen=True)
class Capture:
    """What to record in the same pass, after the edits of the layer."""

    rows: Sequence[int] = ()
    """Bank rows whose feature activations are recorded (float16)."""
    residual_layers: Sequence[int] = ()
    """Layers whose dense residual stream is recorded (float32)."""
    positions: tuple[Position, ...] = ("last", "final")

    def __post_init__(self) -> None:
        if "decode" in self.positions and len(self.positions) > 1:
            raise ValueError("Capture.positions: 'decode' already holds 'last' and 'final'; name it alone")

    @property
    def empty(self) -> bool:
        return not self.rows and not self.residual_layers


@dataclass(frozen=True)
class CapturedRow:
    """The label of one stored row."""

    trial: int
    kind: Position
    position: int
    """0-based position in prompt + generated tokens."""
    token: int
    """The token that the model read at that position."""


@dataclass(frozen=True)
class TrialResult:
    id: int
    tokens: tuple[int, ...]
    """The generated tokens, the end-of-sequence token included when there was one."""
    finish: Literal["eos", "length"]
    edits_applied: int
    """Positions at which the edit was applied, counted where it happened and checked against the scope."""
    f_before: float | None
    """The feature's activation at the last position of the prompt, before the edit."""
    relative_delta: float | None
    """|h' - h| / |h| at the last position of the prompt."""
    rows: tuple[CapturedRow, ...] = ()
    features: np.ndarray | None = None
    """[len(rows), len(capture.rows)] float16"""
    residuals: np.ndarray | None = None
    """[len(rows), len(capture.residual_layers), d_model] float32"""


@dataclass(frozen=True)
class Cell:
    """One point of a first-token screen: a prompt under an edit."""

    id: int
    prompt: tuple[int, ...]
    edit: Edit | None = None


@dataclass(frozen=True)
class CellResult:
    id: int
    probabilities: np.ndarray = field(repr=False)
    """[number of token groups] float64"""
    f_before: float | None
    relative_delta: float | None


class EditNotApplied(RuntimeError):
    """An edit fired at fewer or more positions than asked: the results would carry a false label."""


class Engine(Protocol):
    def generate(self, trials: Iterable[Trial], capture: Capture | None = None) -> Iterator[TrialResult]:
        """Run trials; results come as they finish, in no promised order.

        Raises `EditNotApplied` when an edit did not fire exactly where its scope says.
        """
        ...

    def first_token(
        self,
        cells: Iterable[Cell],
        groups: Sequence[Sequence[int]],
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Iterator[CellResult]:
        """The exact probability that the first generated token lies in each group of token ids."""
        ...


def expected_edits(trial: Trial, n_generated: int) -> int:
    """How many positions an edit must touch in a trial that generated n tokens.

    The last generated token is never read by the model, so the model reads len(prompt) + n - 1 positions.
    """
    if trial.edit is None:
        return 0
    if trial.edit.scope == "last":
        return 1
    if trial.edit.scope == "decode":
        return n_generated
    return len(trial.prompt) - 1 + n_generated


def check_edits(trial: Trial, applied: int, n_generated: int, unread: int = 0) -> int:
    """The number of positions edited, which must be what the trial's scope says.

    unread: positions in the scope that an engine did not run because it had their keys and values.

    Raises `EditNotApplied` otherwise.
    """
    expected = expected_edits(trial, n_generated) - unread
    if applied != expected:
        raise EditNotApplied(
            f"trial {trial.id}: the edit of bank row {trial.edit and trial.edit.row} was applied at {applied} "
            f"positions, its scope asks for {expected}"
        )
    return applied
