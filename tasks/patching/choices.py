"""Task `patching.choices`: can the model answer the scenario at all?

It runs before SAEs are trained and activations taken, in seconds: the exact probability that each prompt's answer
begins with a choice, and a few answers as the parser reads them. A scenario that is bound to give nothing but
invalid answers is refused here, with what would mend it, measured on the same model.
"""

from __future__ import annotations

import json

from tasks.context import ShardContext
from tasks.engines.torch_engine import TorchEngine
from tasks.errors import BadInput
from tasks.models.load import load
from tasks.patching.scenario import Prompt
from tasks.patching.spec import ChoicesParams
from tasks.patching.trier import Trier
from tasks.patching.tryout import NextToken, Tryout, listed, percent
from tasks.text.spec import Chat, Frame

ANSWERS_SHOWN = 5
FRAMES_NAMED = 2
FEWEST_ANSWERS = 30
"""Nothing follows from fewer of which none is read."""
SPELLING = 0.01
"""Probability from which a token is worth a word in a remedy."""


def run(ctx: ShardContext) -> None:
    """Json `tryouts`: one `Tryout` for each prompt. BadInput as of `check`."""
    p: ChoicesParams = ctx.params
    loaded = load(p.model, ctx.runtime.device, p.model_fingerprint)
    trier = Trier(TorchEngine(loaded, batch_size=ctx.runtime.batch_size), loaded.tokenizer, p, ctx.seed)
    tryouts = trier.prompts()
    check(trier, tryouts)
    ctx.json("tryouts", [tryout.model_dump(mode="json") for tryout in tryouts])


def check(trier: Trier, tryouts: list[Tryout]) -> None:
    """Refuse a scenario on one of whose prompts the choices have next to no probability, or no answer is read.

    `min_choice_mass` of 0 lets everything through.
    """
    least = trier.p.min_choice_mass
    if not least:
        return
    prompts = {prompt.name: prompt for prompt in trier.p.prompts}
    for tryout in tryouts:
        if tryout.total_mass < least:
            raise BadInput(
                "scenario.choices",
                {name: percent(share) for name, share in tryout.mass.items()},
                f"on prompt {tryout.prompt!r} the answer begins with one of their first tokens with a probability of "
                f"{percent(tryout.total_mass)}, and at least {percent(least)} is wanted; most probable are "
                f"{listed(tryout.next)}",
                _remedy(trier, prompts[tryout.prompt], tryout),
            )
    for tryout in tryouts:
        if len(tryout.answers) >= FEWEST_ANSWERS and not tryout.read:
            raise BadInput(
                "scenario.parser",
                [answer.text for answer in tryout.answers[:ANSWERS_SHOWN]],
                f"these are the first of {len(tryout.answers)} sampled answers to prompt {tryout.prompt!r}, and the "
                "parser reads none of them as a choice",
                f"change its lead or rules so that they match how answers begin{_LET_THROUGH}",
            )


_LET_THROUGH = "; set scenario.min_choice_mass to 0 to study the scenario as it is"


def _remedy(trier: Trier, prompt: Prompt, tryout: Tryout) -> str:
    """What would help: other spellings and frames, with what they were measured to give."""
    unlisted = [
        f"list {token.text!r} among the first_tokens of {token.read_as!r} ({percent(token.probability)})"
        for token in tryout.next
        if token.read_as and not token.counts_as and token.probability >= SPELLING
    ]
    remedies = unlisted + [
        f"use frame: {_yaml(frame)}, where the parser reads {listed(read)} as choices"
        for frame, read in _better_frames(trier, prompt, tryout)
    ]
    if not remedies:
        remedies = ["let prompt and frame lead to an answer that begins with a choice"]
    return " or ".join(remedies) + _LET_THROUGH


def _better_frames(trier: Trier, prompt: Prompt, tryout: Tryout) -> list[tuple[Frame, list[NextToken]]]:
    """Frames in which enough of the next token's probability is read as a choice, the best ones."""
    measured = []
    for frame in other_frames(trier.p.frame, trier.has_chat):
        try:
            read = [token for token in trier.read_in(prompt, frame) if token.probability >= SPELLING]
        except BadInput:  # a chat template that can't be used is no remedy
            continue
        if sum(token.probability for token in read) >= max(trier.p.min_choice_mass, 2 * tryout.total_mass):
            measured.append((frame, read))
    measured.sort(key=lambda one: -sum(token.probability for token in one[1]))
    return measured[:FRAMES_NAMED]


def other_frames(frame: Frame, has_chat: bool) -> list[Frame]:
    """The same with and without a chat template, and with an answer prefix that does not end in a space.

    A tokenizer of words writes the space before a word as part of its token. After a prefix that ends in one, the
    words are out of reach, and what follows a lone space in text: mostly digits.
    """
    prefix = frame.answer_prefix
    own = frame.chat or Chat()
    raw = prefix if prefix[:1].isspace() else f"\n{prefix}"
    frames = [
        Frame(answer_prefix=text, chat=chat)
        for chat, whole in ((None, raw), (own, prefix.lstrip()))
        if chat is None or has_chat
        for text in (whole.rstrip(" "), whole)
    ]
    return [other for other in dict.fromkeys(frames) if other != frame]


def _yaml(frame: Frame) -> str:
    """On one line; JSON is YAML."""
    return json.dumps(frame.model_dump(exclude_none=True, exclude_defaults=True), ensure_ascii=False)
