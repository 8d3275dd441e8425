"""From a prompt's text to the model's tokens, with or without its chat template, and from tokens back to text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from tasks.errors import BadInput
from tasks.text.spec import Frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = datetime(2024, 7, 26)
"""What Llama 3's templates say where no clock is given to them."""


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, frame: Frame, field: str = "scenario.frame.chat"
) -> list[int]:
    """Token ids of `text` in its frame: raw, or as a chat turn, then the answer prefix. Raises as `render` does."""
    if frame.chat is None:
        return render(tokenizer, text, answer=frame.answer_prefix)
    system, answer = frame.chat.system or None, frame.answer_prefix
    return render(tokenizer, text, chat=True, system=system, answer=answer, field=field)


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of a prompt as the model reads it, special tokens included."""
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def response(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int], stop_strings: Sequence[str]) -> str:
    """The text of generated tokens, as it is parsed: without special tokens, up to the first stop string."""
    return cut_at_stop(tokenizer.decode(list(tokens), skip_special_tokens=True), stop_strings)


def cut_at_stop(response: str, stop_strings: Sequence[str]) -> str:
    """The response up to the first of the scenario's stop strings, which is dropped."""
    return response[: min((i for s in stop_strings if (i := response.find(s)) >= 0), default=len(response))]


def render(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    chat: bool = False,
    system: str | None = None,
    answer: str = "",
    field: str = "chat",
) -> list[int]:
    """Token ids of a prompt; `answer` is the beginning of the answer, tokenized with what stands before it.

    chat: `text` is a user's message, after `system` if given, and the answer comes next. The template writes its
    own special tokens, so the tokenizer adds none (a second beginning-of-text token changes results).
    A template that writes the day's date gets `DATE`, so that a prompt is the same on every day.
    Without chat, the tokenizer adds the special tokens it adds by default.

    Raises BadInput, of `field`, for a model without a chat template, a template that fails, and one that leaves a
    message out. What a template computes is not bounded: one that takes forever does.
    """
    if not chat:
        if system is not None:
            raise BadInput("system", system, "a system message needs a chat template", "set chat to true")
        return list(tokenizer(text + answer)["input_ids"])
    framed = _framed(tokenizer, text, system, field)
    for message, changed in (
        ("user", _framed(tokenizer, f"{text} or else", system, field)),
        ("system", None if system is None else _framed(tokenizer, text, f"{system} or else", field)),
    ):
        if changed == framed:
            value, remedy = (text, "leave chat out, or use another model")
            if message == "system":
                value, remedy = (system, "leave system out, or write its words into the prompts")
            raise BadInput(field, value, f"the model's chat template leaves the {message} message out", remedy)
    return list(tokenizer(framed + answer, add_special_tokens=False)["input_ids"])


def _framed(tokenizer: PreTrainedTokenizerBase, text: str, system: str | None, field: str) -> str:
    """The chat as text, up to where the answer begins."""
    templates = getattr(tokenizer, "chat_template", None)
    if not templates:
        raise BadInput(field, True, "the model has no chat template", "leave chat out, or use another model")
    if isinstance(templates, dict) and "default" not in templates:
        problem = "the model has chat templates of these names, and none is called default"
        raise BadInput(field, sorted(templates), problem, "call one default in the model's folder, or leave chat out")
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, strftime_now=DATE.strftime
        )
    except Exception as error:  # of any kind: a template is a program that came with the model
        remedy = "correct it in the model's folder, or leave chat out"
        if system is not None:
            remedy = f"leave system out where the model knows no such message; else {remedy}"
        problem = f"the model's chat template fails ({type(error).__name__}: {error})"
        raise BadInput(field, system or True, problem, remedy) from error
