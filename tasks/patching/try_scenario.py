"""A scenario tried on a model in seconds: what a study would measure first, written out."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator

import torch

from tasks.engines.torch_engine import TorchEngine
from tasks.errors import BadInput
from tasks.models.describe import describe
from tasks.models.load import load, load_tokenizer
from tasks.patching.choices import check
from tasks.patching.first_tokens import first_tokens
from tasks.patching.group_prompts import GroupPrompt, contrast_prompts
from tasks.patching.load import load_scenario
from tasks.patching.prepare import check_lengths
from tasks.patching.scenario import INVALID
from tasks.patching.spec import ChoicesParams, ChoiceTokens, PrepareParams, StudySettings
from tasks.patching.trier import ANSWERS, Trier
from tasks.patching.tryout import NextToken, Tryout, percent
from tasks.report import numbers as fmt
from tasks.text.prompts import encode

WIDTH = 100


def try_scenario(settings: StudySettings, device: str, say: Callable[[str], None]) -> None:
    """Say all that is found out, prompt by prompt. BadInput where a study would refuse the scenario.

    settings: `model`, `scenario`, `trials` and `seed` count, as in a study.
    """
    check_device(device)
    model, trials = settings.model, settings.trials
    scenario = load_scenario(settings.scenario.source)
    groups = contrast_prompts(scenario.contrast, settings.contrast.prompts_per_group, settings.seed)
    tokenizer, info = load_tokenizer(model), describe(model)
    prompts = {prompt.name: encode(tokenizer, prompt.text, scenario.frame) for prompt in scenario.prompts}
    prepared = PrepareParams(
        model=model,
        saes=settings.saes,
        scenario=scenario,
        prompts_per_group=settings.contrast.prompts_per_group,
        max_new_tokens=trials.max_new_tokens,
    )
    check_lengths(prepared, tokenizer, info, prompts, groups)
    choices = first_tokens(scenario, tokenizer)
    params = ChoicesParams(
        model=model,
        model_fingerprint="",
        frame=scenario.frame,
        prompts=scenario.prompts,
        choices=[ChoiceTokens(name=name, tokens=tokens) for name, tokens in choices.ids.items()],
        parser=scenario.parser,
        stop_strings=scenario.stop,
        max_new_tokens=trials.max_new_tokens,
        temperature=trials.temperature,
        top_p=trials.top_p,
        min_choice_mass=settings.scenario.min_choice_mass,
    )
    say(f"{scenario.name}: {scenario.description}".removesuffix(": "))
    for dropped in choices.dropped:
        say(f"of choice {dropped.choice}, the first token {dropped.text!r} is {dropped.reason}; it counts for nothing")
    loaded = load(model, device)
    trier = Trier(TorchEngine(loaded), loaded.tokenizer, params, settings.seed)
    tryouts = trier.prompts()
    for tryout in tryouts:
        for line in ("", *prompt_lines(tryout)):
            say(line)
    say("")
    say(contrast_line(groups))
    check(trier, tryouts)


def check_device(device: str) -> None:
    """BadInput if this machine has no such device."""
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise BadInput("--device", device, "is no device", "use cpu, cuda or cuda:N") from None
    if asked.type == "cuda" and (asked.index or 0) >= torch.cuda.device_count():
        raise BadInput("--device", device, f"this machine has {torch.cuda.device_count()} GPUs for torch", "use cpu")


def prompt_lines(tryout: Tryout) -> Iterator[str]:
    """One prompt: as the model reads it, its tokens, the next token, the choices, and answers as they are parsed."""
    yield f"prompt {tryout.prompt}, as the model reads it:"
    yield from (f"  | {line}" for line in tryout.text.split("\n"))
    yield f"its {len(tryout.tokens)} tokens:"
    yield from _wrapped(map(repr, tryout.tokens))
    yield "most probable next tokens:"
    yield from (f"  {percent(token.probability):>6}  {token.text!r}{_role(token)}" for token in tryout.next)
    shares = ", ".join(f"{name} {percent(share)}" for name, share in tryout.mass.items())
    yield f"mass of the choices' first tokens: {shares}; together {percent(tryout.total_mass)}"
    yield "sampled answers, as the parser reads them:"
    widths = [max(len(word(answer)) for answer in tryout.answers[:ANSWERS]) for word in _WORDS]
    for answer in tryout.answers[:ANSWERS]:
        columns = (word(answer).ljust(width) for word, width in zip(_WORDS, widths, strict=True))
        yield f"  {'  '.join(columns)}  {answer.text!r}"
    yield f"{fmt.of(tryout.read, len(tryout.answers))} answers are read as a choice"


_WORDS = (lambda answer: answer.choice, lambda answer: f"by {answer.rule}")


def contrast_line(groups: list[GroupPrompt]) -> str:
    """ "contrast: wary 24 prompts, trusting 24 prompts" """
    counted = Counter(prompt.group for prompt in groups)
    return "contrast: " + ", ".join(f"{name} {n} prompts" for name, n in counted.items())


def _role(token: NextToken) -> str:
    if token.counts_as:
        unread = "" if token.read_as else f"; alone, the parser reads it as {INVALID}"
        return f"  {token.counts_as}{unread}"
    if token.read_as:
        return f"  the parser reads it as {token.read_as}, but it is none of its first_tokens"
    return ""


def _wrapped(words: Iterator[str]) -> list[str]:
    """Words on lines of at most WIDTH, never broken within."""
    lines = textwrap.wrap(
        " ".join(word.replace(" ", "\0") for word in words), WIDTH, break_long_words=False, break_on_hyphens=False
    )
    return [f"  {line}".replace("\0", " ") for line in lines]
