"""Text as sequences of tokens. Documents become sequences in one of three ways:

- `packed`: all in a row, cut at one length across the ends of documents;
- `truncated`: the beginning of each document;
- `in_runs`: a whole document, in as many sequences as it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from tasks.errors import BadInput
from tasks.text.documents import Document
from tasks.text.spec import TextSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = np.ndarray
"""[n] int32, the BOS token included."""


@dataclass(frozen=True)
class Sequence:
    document: int
    """Number of the first document in it, counted from 0 over all that were read."""
    tokens: Tokens


@dataclass
class Cut:
    """The sequences of a text, and what there is to say about how they came to be."""

    sequences: list[Sequence] = field(default_factory=list)
    documents: int = 0
    """Read, and not empty."""
    empty: int = 0

    @property
    def tokens(self) -> int:
        return sum(len(sequence.tokens) for sequence in self.sequences)

    @property
    def longest(self) -> int:
        return max(len(sequence.tokens) for sequence in self.sequences)


def begins_with_bos(tokenizer: PreTrainedTokenizerBase, bos: str) -> bool:
    """Whether sequences begin with the BOS token. `auto`: whether the tokenizer begins a text with it by itself.

    Raises BadInput when it is asked for and there is none.
    """
    token = tokenizer.bos_token_id
    if bos == "always" and token is None:
        raise BadInput("text.bos", bos, "the model's tokenizer has no BOS token", "use auto or never")
    if bos == "auto":
        return token is not None and tokenizer("a")["input_ids"][:1] == [token]
    return bos == "always"


def cut(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    text: TextSource,
    bos: bool,
    on_sequence: Callable[[int], None] = lambda n: None,
) -> Cut:
    """At most `text.sequences` sequences of at most `text.length` tokens, from no more documents than it takes.

    bos: whether each begins with the BOS token (see `begins_with_bos`). on_sequence: called with how many there are.
    Raises BadInput when there is none.
    """
    result = Cut()
    start = [tokenizer.bos_token_id] if bos else []
    encoded = _encoded(documents, tokenizer, result)
    room = text.length - len(start)
    pieces = packed(encoded, room, tokenizer.eos_token_id) if text.pack else truncated(encoded, room)
    for document, tokens in islice(pieces, text.sequences):
        result.sequences.append(Sequence(document, np.array([*start, *tokens], dtype=np.int32)))
        on_sequence(len(result.sequences))
    if not result.sequences:
        raise BadInput(
            "text.location",
            text.location,
            f"there is no text in it ({result.empty} empty documents)",
            "give a source with text, or correct text.column",
        )
    return result


def warnings(result: Cut, text: TextSource) -> list[str]:
    """What the user should know about a text that is not quite as asked for."""
    found = []
    n = len(result.sequences)
    if text.pack and n == 1 and result.longest < text.length:
        found.append(f"The text fills no sequence of {text.length} tokens: there is one of {result.longest}.")
    elif n < text.sequences:
        full = f" of {text.length} tokens" if text.pack else ""
        found.append(
            f"The text gives {_counted(n, 'sequence')}{full}, not the {text.sequences} asked for: "
            f"give more text, or ask for fewer {'or shorter ' if text.pack else ''}sequences."
        )
    if result.empty:
        found.append(f"{_counted(result.empty, 'document')} without text skipped.")
    return found


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


Encoded = Iterator[tuple[int, Iterator[list[int]]]]
"""(number of the document, its tokens in pieces), without documents that have none."""


def _encoded(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, result: Cut) -> Encoded:
    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    for number, document in enumerate(documents):
        pieces = (ids for piece in document if (ids := tokens(piece)))
        first = next(pieces, None)
        if first is None:
            result.empty += 1
        else:
            result.documents += 1
            yield number, chain([first], pieces)


def packed(encoded: Encoded, room: int, eos: int | None) -> Iterator[tuple[int, list[int]]]:
    """All documents in a row, in sequences of `room` tokens, with the document that each begins in.

    eos: token between documents; without one they touch. What is left at the end is dropped, unless it is all there
    is. No more documents are asked for than the sequences that are taken need.
    """
    waiting: list[int] = []
    owners: list[int] = []  # of each waiting token: the document that it is of
    last, alone = None, True
    for number, pieces in encoded:
        if last is not None and eos is not None:
            waiting.append(eos)
            owners.append(last)
        last = number
        for tokens in pieces:
            waiting += tokens
            owners += [number] * len(tokens)
            done = 0
            while len(waiting) - done >= room:
                yield owners[done], waiting[done : done + room]
                done, alone = done + room, False
            del waiting[:done], owners[:done]
    if waiting and alone:
        yield owners[0], waiting


def truncated(encoded: Encoded, room: int) -> Iterator[tuple[int, list[int]]]:
    """The first `room` tokens of each document."""
    for number, pieces in encoded:
        tokens: list[int] = []
        while len(tokens) < room and (more := next(pieces, None)) is not None:
            tokens += more
        yield number, tokens[:room]


def in_runs(tokens: list[int], length: int) -> Iterator[list[int]]:
    """All tokens of one document, in sequences of `length`; the last may be shorter."""
    for at in range(0, len(tokens), length):
        yield tokens[at : at + length]
