"""What the model says on one prompt of a scenario before anything is edited. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from tasks.patching.scenario import INVALID
from tasks.report import numbers as fmt

TOKENS_SHOWN = 5


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NextToken(_Model):
    """One of the most probable next tokens."""

    text: str
    probability: float
    counts_as: str | None
    """The choice whose first token it is, so that the screen counts it."""
    read_as: str | None
    """The choice that the parser reads from it alone."""


class Answer(_Model):
    text: str
    choice: str
    rule: str


class Tryout(_Model):
    """One prompt, unedited."""

    prompt: str
    text: str
    """As the model reads it, in its frame, special tokens included."""
    tokens: list[str]
    mass: dict[str, float]
    """Probability that the next token is a first token of each choice, in the order of choices."""
    next: list[NextToken]
    answers: list[Answer] = Field(description="The first ones of the study's baseline.")

    @property
    def total_mass(self) -> float:
        return sum(self.mass.values())

    @property
    def read(self) -> int:
        """Answers that the parser reads as a choice."""
        return sum(answer.choice != INVALID for answer in self.answers)

    def in_words(self) -> str:
        """ "bet 49 %, stop 49 % by the first token; most probable '1' 49 %, ...; 9 of 10 answers read" """
        shares = ", ".join(f"{name} {percent(share)}" for name, share in self.mass.items())
        answers = fmt.of(self.read, len(self.answers))
        return f"{shares} by the first token; most probable {listed(self.next)}; {answers} answers read"


def listed(tokens: Sequence[NextToken]) -> str:
    """ "'1' 49 %, '2' 30 %": the first of them."""
    return ", ".join(f"{token.text!r} {percent(token.probability)}" for token in tokens[:TOKENS_SHOWN])


def percent(share: float) -> str:
    """ "49 %", "6.9 %", "0.0042 %": for a terminal, with a plain space."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
