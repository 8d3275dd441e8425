"""Task `patching.survivors`: which candidates are worth sampling, by their exact effect in the screen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.context import ShardContext
from tasks.patching import tables
from tasks.patching.spec import SelectionSettings, SurvivorsParams
from tasks.patching.tables import CANDIDATES, SURVIVORS, probability


def run(ctx: ShardContext) -> None:
    """Table `survivors`: the candidates' columns with effect, effect_prompt, effect_choice, control_effect, rank.

    Json `screen`: how many candidates were screened, what they had to reach, and the largest effect of all.
    """
    p: SurvivorsParams = ctx.params
    candidates = CANDIDATES.read(ctx.input("contrast"))
    columns = ["arm", "dose", "candidate", "prompt", *map(probability, p.choices)]
    screen = pa.concat_tables(tables.screen(p.choices).read(shard, columns) for shard in ctx.inputs("screen"))
    ranked = rank_by_effect(candidates, screen, p.prompts, p.choices)
    survivors = choose_survivors(ranked, p.settings)
    ctx.table(SURVIVORS.name, SURVIVORS.checked(survivors))
    ctx.json("screen", summary(ranked, p.settings))
    ctx.count(survivors=len(survivors), candidates=len(candidates))


def rank_by_effect(candidates: pa.Table, screen: pa.Table, prompts: list[str], choices: list[str]) -> pa.Table:
    """All candidates, largest exact effect p(choice | high) - p(choice | low) over prompts and choices first.

    Columns more: `effect`, signed, with `effect_prompt` and `effect_choice`, which are null where no choice moves at
    all; `control_effect`, that of the random direction at the same prompt and choice; `rank` from 1.

    The answer's first token at the trials' own temperature and top_p: what sampling will estimate. `invalid` is never
    named: the screen's is the mass of every other first token, which is not the share of answers that a parser cannot
    read; and what it takes from a choice shows in that choice.
    """
    n = len(candidates)
    shifts = {arm: _shifts(screen, arm, n, prompts, choices).reshape(n, -1) for arm in ("feature", "random")}
    best = np.abs(shifts["feature"]).argmax(axis=1) if n else np.array([], int)
    effect, control = (shifts[arm][np.arange(n), best] for arm in ("feature", "random"))
    prompt, choice = np.divmod(best, len(choices))
    added = {
        "effect": pa.array(effect),
        "effect_prompt": pa.array(np.array(prompts)[prompt], pa.string(), mask=effect == 0),
        "effect_choice": pa.array(np.array(choices)[choice], pa.string(), mask=effect == 0),
        "control_effect": pa.array(control),
    }
    for name, column in added.items():
        candidates = candidates.append_column(name, column)
    order = np.argsort(-np.abs(effect), kind="stable")
    return candidates.take(order).append_column("rank", pa.array(np.arange(1, n + 1), pa.int32()))


def choose_survivors(ranked: pa.Table, settings: SelectionSettings) -> pa.Table:
    """The first of them that are large enough, at most as many as asked for."""
    limits = settings.limits
    return ranked.filter(pc.greater_equal(pc.abs(ranked["effect"]), limits.min_effect)).slice(0, limits.max_survivors)


def summary(ranked: pa.Table, settings: SelectionSettings) -> dict[str, Any]:
    """What the screen says of all candidates; `largest` is null without any."""
    names = ["candidate", "layer", "feature", "effect", "effect_prompt", "effect_choice", "control_effect"]
    largest = ranked.select(names).slice(0, 1).to_pylist()
    limits = settings.limits
    return {
        "candidates": len(ranked),
        "min_effect": limits.min_effect,
        "max_survivors": limits.max_survivors,
        "largest": largest[0] if largest else None,
    }


def _shifts(screen: pa.Table, arm: str, n: int, prompts: list[str], choices: list[str]) -> np.ndarray:
    """[n candidates, prompts, choices]: p at dose 1 minus p at dose 0."""
    p = np.full((2, n, len(prompts), len(choices)), np.nan)
    rows = screen.filter(pc.and_(pc.equal(screen["arm"], arm), pc.is_in(screen["dose"], pa.array([0.0, 1.0]))))
    dose = rows["dose"].to_numpy().astype(int)
    candidate = rows["candidate"].to_numpy()
    prompt = pc.index_in(rows["prompt"], pa.array(prompts)).to_numpy()
    for i, choice in enumerate(choices):
        p[dose, candidate, prompt, i] = rows[probability(choice)].to_numpy()
    if np.isnan(p).any():
        raise ValueError(f"the screen lacks rows of arm {arm!r}: every candidate needs doses 0 and 1 on every prompt")
    return p[1] - p[0]
