"""Which token sequences a dictionary is trained on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tasks.errors import BadInput
from tasks.sae.spec import SaeTrainParams
from tasks.text.prompts import render
from tasks.text.prose import library_fingerprint, library_prose
from tasks.text.sequences import in_runs, packed

LENGTH = 256
"""Tokens of a sequence at most."""
HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Sequence:
    tokens: tuple[int, ...]
    own: bool
    """Of the study's texts, not of the library's prose."""
    held_out: bool


def sequences(
    tokenizer: PreTrainedTokenizerBase, params: SaeTrainParams, seed: int, max_positions: int | None = None
) -> list[Sequence]:
    """The study's texts up to their share of the budget of tokens, then prose; of both, every tenth is held out.

    Prose is cut into sequences of LENGTH tokens, or of the `max_positions` that the model reads if these are fewer,
    each with the special token in front that the tokenizer begins with, if any. Longer texts are cut as well. When
    there are too many texts, a random choice is read.

    Raises:
        BadInput: nothing to read, too little to hold some out, or other prose than the spec was written for.
    """
    settings = params.settings
    length = min(LENGTH, max_positions or LENGTH)
    budget = settings.tokens
    share = settings.texts_share if settings.library_prose else 1.0
    own = _within(_own(tokenizer, params, seed, length), int(budget * share))
    left = budget - sum(map(len, own))
    prose = _within(_prose(tokenizer, params, length), left) if settings.library_prose else []
    read = [
        Sequence(tuple(tokens), is_own, held_out=i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1)
        for of_kind, is_own in ((own, True), (prose, False))
        for i, tokens in enumerate(of_kind)
    ]
    if not any(sequence.held_out for sequence in read):
        raise BadInput(
            "settings.tokens",
            budget,
            f"{len(read)} sequences are too few: a tenth is held out to measure the quality",
            f"read at least {HELD_OUT_EVERY * length} tokens, give more texts, or turn settings.library_prose on",
        )
    return read


def _own(tokenizer: PreTrainedTokenizerBase, params: SaeTrainParams, seed: int, length: int) -> list[list[int]]:
    """The study's texts as the model will read them, in random order."""
    rendered = []
    for text in params.texts:
        if params.chat:
            suffix = tokenizer(params.answer_prefix, add_special_tokens=False)["input_ids"]
            rendered.append(render(tokenizer, text, chat=True, system=params.system) + list(suffix))
        else:
            rendered.append(render(tokenizer, text + params.answer_prefix))
    random.Random(seed).shuffle(rendered)
    return [run for tokens in rendered for run in in_runs(tokens, length)]


def _prose(tokenizer: PreTrainedTokenizerBase, params: SaeTrainParams, length: int) -> Iterator[list[int]]:
    """Sequences of `length` tokens, cut across the ends of topics; tokenized only as far as they are asked for."""
    if params.corpus_fingerprint != library_fingerprint():
        raise BadInput(
            "corpus_fingerprint",
            params.corpus_fingerprint,
            "this release of the code brings another prose than the one that planned this task",
            "use the same release on both sides",
        )
    first = tokenizer("")["input_ids"][:1]
    topics = (tokenizer(topic + "\n\n", add_special_tokens=False)["input_ids"] for topic in library_prose())
    encoded = ((number, iter([tokens])) for number, tokens in enumerate(topics))
    return ([*first, *tokens] for _, tokens in packed(encoded, length - len(first), eos=None))


def _within(tokens: Iterable[list[int]], budget: int) -> list[list[int]]:
    """The leading sequences whose lengths stay within the budget together."""
    kept, used = [], 0
    for sequence in tokens:
        used += len(sequence)
        if used > budget:
            break
        kept.append(sequence)
    return kept
