"""Which single tokens are a choice, so that its probability can be read from the first answer token's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tasks.errors import BadInput
from tasks.patching.parser import Reader
from tasks.patching.scenario import INVALID, Scenario
from tasks.text.prompts import decode, encode

_WORD_STARTS = ("", "▁", "Ġ")
"""How vocabularies write a token: as it is, or with the space before it (SentencePiece, byte-level BPE)."""


class Dropped(NamedTuple):
    choice: str
    text: str
    reason: str


@dataclass(frozen=True)
class FirstTokens:
    ids: dict[str, list[int]]
    """Sorted token ids of each choice, in the scenario's order of choices."""
    dropped: list[Dropped]
    """Texts that this tokenizer has no single token for: their probability counts as `invalid`."""


def first_tokens(scenario: Scenario, tokenizer: Any) -> FirstTokens:
    """The token ids whose probabilities add up to each choice.

    A token counts as a text if it continues a prompt by exactly that text: after "Choice: " a tokenizer that marks
    word beginnings writes "1" without its mark, after "Choice:" it writes " 1" with it. As texts belong to one
    choice each, so do tokens. BadInput if a choice keeps no token, or if the parser reads another choice from a
    text than the screen would count.
    """
    reader = Reader(scenario.parser)
    ids: dict[str, list[int]] = {}
    dropped: list[Dropped] = []
    for choice in scenario.choices:
        found: set[int] = set()
        for text in choice.first_tokens:
            _check_parser(scenario, reader, choice.name, text)
            tokens = _tokens_of(scenario, tokenizer, text)
            if not tokens:
                dropped.append(Dropped(choice.name, text, "not a single token of this tokenizer"))
            found |= tokens
        if not found:
            raise BadInput(
                f"choices.{choice.name}.first_tokens",
                choice.first_tokens,
                "none of these texts is a single token of this tokenizer",
                "name a shorter beginning of the choice, such as its number or letter",
            )
        ids[choice.name] = sorted(found)
    return FirstTokens(ids, dropped)


def _check_parser(scenario: Scenario, reader: Reader, choice: str, text: str) -> None:
    for prompt in scenario.prompts:
        decision = reader.read(text, prompt.fields)
        undecided = decision.choice == INVALID and decision.rule.endswith(":no_amount")
        if decision.choice != choice and not undecided:
            raise BadInput(
                f"choices.{choice}.first_tokens",
                text,
                f"the parser reads {decision.choice!r} (rule {decision.rule}) on prompt {prompt.name!r}",
                "make the parser's rules and the first tokens agree",
            )


def _tokens_of(scenario: Scenario, tokenizer: Any, text: str) -> set[int]:
    """Tokens that continue a prompt by exactly `text`."""
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    vocabulary = tokenizer.get_vocab()
    likely = {vocabulary.get(start + text.lstrip(" ")) for start in _WORD_STARTS} | set(
        alone if len(alone) == 1 else ()
    )
    found: set[int] = set()
    for prompt in scenario.prompts:
        before = encode(tokenizer, prompt.text, scenario.frame)
        said = decode(tokenizer, before)
        found |= {t for t in likely if t is not None and decode(tokenizer, [*before, t]) == said + text}
    return found
