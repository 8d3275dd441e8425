"""From a prompt's text to the model's tokens, and from tokens back to text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tasks.models.chat import render
from tasks.patching.parser import cut_at_stop
from tasks.patching.scenario import Frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, text: str, frame: Frame) -> list[int]:
    """Token ids of `text` in its frame: raw, or as a chat turn, then the answer prefix."""
    if frame.chat is None:
        return render(tokenizer, text, answer=frame.answer_prefix)
    system, answer = frame.chat.system or None, frame.answer_prefix
    return render(tokenizer, text, chat=True, system=system, answer=answer, field="scenario.frame.chat")


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of a prompt as the model reads it, special tokens included."""
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def response(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int], stop_strings: Sequence[str]) -> str:
    """The text of generated tokens, as it is parsed: without special tokens, up to the first stop string."""
    return cut_at_stop(tokenizer.decode(list(tokens), skip_special_tokens=True), stop_strings)
