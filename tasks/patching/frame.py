"""From a prompt's text to the model's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.models.chat import render
from tasks.patching.scenario import Frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, text: str, frame: Frame) -> list[int]:
    """Token ids of `text` in its frame: raw, or as a chat turn, then the answer prefix."""
    if frame.chat is None:
        return render(tokenizer, text, answer=frame.answer_prefix)
    system, answer = frame.chat.system or None, frame.answer_prefix
    return render(tokenizer, text, chat=True, system=system, answer=answer, field="scenario.frame.chat")
