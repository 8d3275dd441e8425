"""Reads the first decision of a continuation; whatever is none is `invalid`, an outcome like any other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import regex

from tasks.patching import patterns
from tasks.patching.scenario import INVALID, AmountRule, Bound, Parser, Rule


class Decision(NamedTuple):
    choice: str
    amount: float | None
    rule: str
    """Name of the rule, with what happened to its amount after a colon: `default_amount`, `no_amount`,
    `amount_unreadable`, `amount_out_of_bounds`. `empty`: nothing was said before the scenario restarts. `none`: no
    rule matched."""


def answer_length(response: str, restart: Sequence[str]) -> int:
    """Characters of the response before the model starts to play the scenario on its own."""
    field = "scenario.parser.restart"
    starts = (match.start() for pattern in restart if (match := patterns.search(pattern, response, field)))
    return min(starts, default=len(response))


class Reader:
    """The rules of one scenario."""

    def __init__(self, parser: Parser):
        self._restart = parser.restart
        self._lead = parser.lead
        self._rules = parser.rules

    def read(self, response: str, fields: Mapping[str, float]) -> Decision:
        """The decision that `response` begins with, on a prompt that has these fields.

        The first rule that matches at the start of the answer (after the lead) decides. Nothing that comes later
        is looked at: a base model that plays on prints the menu and further decisions again and again.
        """
        answer = response[: answer_length(response, self._restart)]
        lead = patterns.match(self._lead, answer, "scenario.parser.lead")
        answer = answer[lead.end() :] if lead else answer
        if not answer.strip():
            return Decision(INVALID, None, "empty")
        for rule in self._rules:
            if match := patterns.match(rule.pattern, answer, f"scenario.parser.rules.{rule.name}.pattern"):
                return _decide(rule, match, fields)
        return Decision(INVALID, None, "none")


def _decide(rule: Rule, match: regex.Match[str], fields: Mapping[str, float]) -> Decision:
    if rule.amount is None or rule.choice == INVALID:
        return Decision(rule.choice, None, rule.name)
    said = match.group(rule.amount.group)
    if said is not None:
        try:
            amount = float(said.replace(",", ""))
        except ValueError:
            amount = math.nan
        if not math.isfinite(amount):
            return Decision(INVALID, None, f"{rule.name}:amount_unreadable")
        if _within(amount, rule.amount, fields):
            return Decision(rule.choice, amount, rule.name)
        return Decision(INVALID, None, f"{rule.name}:amount_out_of_bounds")
    default = None if rule.amount.default is None else _number(rule.amount.default, fields)
    if default is not None:
        return Decision(rule.choice, default, f"{rule.name}:default_amount")
    return Decision(INVALID if rule.amount.required else rule.choice, None, f"{rule.name}:no_amount")


def _number(bound: Bound, fields: Mapping[str, float]) -> float | None:
    return fields.get(bound) if isinstance(bound, str) else bound


def _within(amount: float, rule: AmountRule, fields: Mapping[str, float]) -> bool:
    low = [b for bound in rule.min if (b := _number(bound, fields)) is not None]
    high = [b for bound in rule.max if (b := _number(bound, fields)) is not None]
    return all(amount >= b for b in low) and all(amount <= b for b in high)
