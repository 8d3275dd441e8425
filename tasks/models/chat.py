"""Text to token ids, with or without the model's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(
    tokenizer: PreTrainedTokenizerBase, text: str, chat: bool = False, system: str | None = None, answer: str = ""
) -> list[int]:
    """Token ids of a prompt; `answer` is the beginning of the answer, tokenized with what stands before it.

    chat: `text` is a user's message, after `system` if given, and the answer comes next. The template writes its
    own special tokens, so the tokenizer adds none (a second beginning-of-text token changes results).
    Without chat, the tokenizer adds the special tokens it adds by default.
    """
    if not chat:
        if system is not None:
            raise BadInput("system", system, "a system message needs a chat template", "set chat to true")
        return list(tokenizer(text + answer)["input_ids"])
    if tokenizer.chat_template is None:
        raise BadInput("chat", True, "the model has no chat template", "set chat to false")
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    framed = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(framed + answer, add_special_tokens=False)["input_ids"])
