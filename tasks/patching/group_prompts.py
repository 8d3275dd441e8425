"""The prompts of both contrast groups, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tasks.errors import BadInput
from tasks.patching import slot_machine, templates
from tasks.patching.scenario import Contrast, Group

GENERATORS: dict[str, Callable[..., list[str]]] = {"slot_machine": slot_machine.histories}
"""By name: (n, seed, **params) -> n different texts, a function of the arguments alone."""


class GroupPrompt(NamedTuple):
    prompt_id: int
    group: str
    text: str


def contrast_prompts(contrast: Contrast, per_group: int, seed: int) -> list[GroupPrompt]:
    """Up to `per_group` prompts of the low group, then as many of the high group, numbered from 0.

    A group with fewer prompts gives all it has. BadInput for fewer than two (no variance), for a prompt that
    occurs twice in its group (a copy is no further observation), and for files not read in yet.
    """
    sides = (("low", contrast.low), ("high", contrast.high))
    chosen = [(group.name, text) for side, group in sides for text in _texts(side, group, per_group, seed)]
    return [GroupPrompt(i, name, text) for i, (name, text) in enumerate(chosen)]


def _texts(side: str, group: Group, n: int, seed: int) -> list[str]:
    where = f"scenario.contrast.{side}"
    if group.file is not None:
        raise BadInput(where, group.file, "the file has not been read in", "load the scenario with load_scenario")
    if group.generator is not None:
        texts = _generated(where, group, n, seed)
    elif group.rows is not None:
        texts = [_filled(where, group.template or "", row) for row in group.rows[:n]]
    else:
        texts = (group.prompts or [])[:n]
    if len(texts) < 2:
        raise BadInput(where, len(texts), "too few prompts", "give at least two (a few dozen for useful tests)")
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise BadInput(where, twice, "the same prompt occurs twice", "remove the copy: it is no further observation")
    return texts


def _generated(where: str, group: Group, n: int, seed: int) -> list[str]:
    if group.generator not in GENERATORS:
        raise BadInput(f"{where}.generator", group.generator, "unknown", f"known: {sorted(GENERATORS)}")
    try:
        return GENERATORS[group.generator](n, seed, **group.params)
    except BadInput:
        raise
    except (TypeError, ValueError) as error:
        raise BadInput(f"{where}.params", group.params, str(error), "give the generator's own parameters") from error


def _filled(where: str, template: str, row: dict[str, str | int | float]) -> str:
    try:
        return templates.fill(template, row)
    except (KeyError, IndexError, ValueError) as error:
        raise BadInput(
            f"{where}.rows", row, f"does not fill the template ({error})", "name every {field}; write {{ for a brace"
        ) from error
