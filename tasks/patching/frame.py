"""From a prompt's text to the model's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.errors import BadInput
from tasks.models.chat import render
from tasks.patching.scenario import Frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, text: str, frame: Frame) -> list[int]:
    """Token ids of `text` in its frame: raw, or as a chat turn, then the answer prefix."""
    if frame.chat is None:
        return render(tokenizer, text, answer=frame.answer_prefix)
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput("scenario frame.chat", frame.chat.system, "the tokenizer has no chat template", "leave chat out")
    return render(tokenizer, text, chat=True, system=frame.chat.system or None, answer=frame.answer_prefix)
