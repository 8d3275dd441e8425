"""The model on the prompts of a scenario before anything is edited: the next token, and sampled answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.engines.interface import Cell, Trial
from tasks.engines.torch_engine import TorchEngine
from tasks.patching.cells import baseline
from tasks.patching.parser import Reader
from tasks.patching.scenario import INVALID, Prompt
from tasks.patching.spec import ChoicesParams
from tasks.patching.tryout import Answer, NextToken, Tryout
from tasks.text.prompts import decode, encode, response
from tasks.text.spec import Frame

ANSWERS = 10
"""Sampled on each prompt; one where all would be the same."""
MORE_ANSWERS = 32
"""So many where the parser reads none of the first: enough to tell a scenario that gives nothing."""
TOKENS_LISTED = 10
TOKENS_READ = 50
"""The parser is shown this many of the most probable tokens."""
DIGITS = 6
"""Of stored probabilities: what is reproducible between machines, and far more than anyone needs here."""


class Trier:
    """A loaded model and the scenario it is tried on."""

    def __init__(self, engine: TorchEngine, tokenizer: Any, p: ChoicesParams, run_seed: int):
        self.p = p
        self._engine, self._tokenizer, self._seed = engine, tokenizer, run_seed
        self._reader = Reader(p.parser)
        self._fields = {prompt.name: prompt.fields for prompt in p.prompts}
        self._choice_of = {token: choice.name for choice in p.choices for token in choice.tokens}

    @property
    def has_chat(self) -> bool:
        return bool(getattr(self._tokenizer, "chat_template", None))

    def prompts(self) -> list[Tryout]:
        """One for each prompt, in their order."""
        tokens = {one.name: tuple(encode(self._tokenizer, one.text, self.p.frame)) for one in self.p.prompts}
        distributions = self._distributions(tokens.values())
        answers = self._answers(tokens, range(ANSWERS if self.p.temperature else 1))
        unread = {name: tokens[name] for name in tokens if all(a.choice == INVALID for a in answers[name])}
        if self.p.temperature:
            for name, more in self._answers(unread, range(ANSWERS, MORE_ANSWERS)).items():
                answers[name] += more
        return [
            self._tryout(prompt, tokens[prompt.name], probabilities, answers[prompt.name])
            for prompt, probabilities in zip(self.p.prompts, distributions, strict=True)
        ]

    def read_in(self, prompt: Prompt, frame: Frame) -> list[NextToken]:
        """The most probable next tokens of a prompt in another frame that the parser reads as a choice."""
        tokens = encode(self._tokenizer, prompt.text, frame)
        [probabilities] = self._distributions([tokens])
        likely = self._next_tokens(prompt, tokens, probabilities, TOKENS_READ)
        return [token for token in likely if token.read_as is not None]

    def _tryout(
        self, prompt: Prompt, tokens: Sequence[int], probabilities: np.ndarray, answers: list[Answer]
    ) -> Tryout:
        return Tryout(
            prompt=prompt.name,
            text=decode(self._tokenizer, tokens),
            tokens=[decode(self._tokenizer, [token]) for token in tokens],
            mass={choice.name: round(float(probabilities[choice.tokens].sum()), DIGITS) for choice in self.p.choices},
            next=self._next_tokens(prompt, tokens, probabilities, TOKENS_LISTED),
            answers=answers,
        )

    def _distributions(self, prompts: Iterable[Sequence[int]]) -> list[np.ndarray]:
        """The next token's probabilities [vocabulary] after each prompt, as the study samples.

        Greedy studies are measured at temperature 1: an edit may lift what is not the most probable token.
        """
        cells = [Cell(i, tuple(tokens)) for i, tokens in enumerate(prompts)]
        results = self._engine.first_token(cells, None, self.p.temperature or 1.0, self.p.top_p)
        by_id = {result.id: result.probabilities for result in results}
        return [by_id[cell.id] for cell in cells]

    def _answers(self, prompts: Mapping[str, tuple[int, ...]], numbers: range) -> dict[str, list[Answer]]:
        """Answers to each prompt: the trials of these numbers of the study's baseline."""
        p = self.p
        asked = list(enumerate((name, number) for name in prompts for number in numbers))
        trials = [
            Trial(
                i,
                prompts[name],
                baseline(name).seed(self._seed, "discovery", number),
                max_new_tokens=p.max_new_tokens,
                temperature=p.temperature,
                top_p=p.top_p,
            )
            for i, (name, number) in asked
        ]
        tokens = {result.id: result.tokens for result in self._engine.generate(trials)}
        answers: dict[str, list[Answer]] = {name: [] for name in prompts}
        for i, (name, _) in asked:
            text = response(self._tokenizer, tokens[i], p.stop_strings)
            said = self._reader.read(text, self._fields[name])
            answers[name].append(Answer(text=text, choice=said.choice, rule=said.rule))
        return answers

    def _next_tokens(self, prompt: Prompt, tokens: Sequence[int], probabilities: np.ndarray, n: int) -> list[NextToken]:
        """The `n` most probable tokens, most probable first; of equal ones the lower id."""
        before = decode(self._tokenizer, tokens)
        likely = np.argsort(-probabilities, kind="stable")[:n].tolist()
        found = []
        for token in likely:
            text = decode(self._tokenizer, [*tokens, token])[len(before) :]
            read_as = self._reader.read(text, prompt.fields).choice
            found.append(
                NextToken(
                    text=text,
                    probability=round(float(probabilities[token]), DIGITS),
                    counts_as=self._choice_of.get(token),
                    read_as=None if read_as == INVALID else read_as,
                )
            )
        return found
