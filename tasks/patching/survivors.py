"""Task `patching.survivors`: which candidates are worth sampling, by their exact effect in the screen."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.context import ShardContext
from tasks.patching.scenario import INVALID
from tasks.patching.spec import SelectionSettings, SurvivorsParams


def run(ctx: ShardContext) -> None:
    """Table `survivors`: the candidates' columns with effect, effect_prompt, effect_choice, control_effect, rank."""
    p: SurvivorsParams = ctx.params
    candidates = ctx.input("contrast").table("candidates")
    screen = pa.concat_tables(shard.table("screen") for shard in ctx.inputs("screen"))
    survivors = choose_survivors(candidates, screen, p.prompts, [*p.choices, INVALID], p.settings)
    ctx.table("survivors", survivors)
    ctx.count(survivors=len(survivors), candidates=len(candidates))


def choose_survivors(
    candidates: pa.Table, screen: pa.Table, prompts: list[str], outcomes: list[str], settings: SelectionSettings
) -> pa.Table:
    """Candidates by largest |p(outcome | high) - p(outcome | low)| over prompts and outcomes.

    `effect` keeps its sign; `control_effect` is that of the random direction at the same prompt and outcome.
    """
    n = len(candidates)
    shifts = {arm: _shifts(screen, arm, n, prompts, outcomes) for arm in ("feature", "random")}
    flat = shifts["feature"].reshape(n, -1)
    best = np.abs(flat).argmax(axis=1) if n else np.array([], int)
    effect = flat[np.arange(n), best]
    control = shifts["random"].reshape(n, -1)[np.arange(n), best]
    order = np.argsort(-np.abs(effect), kind="stable")
    if settings.candidates == "screen":
        order = order[np.abs(effect)[order] >= settings.min_effect][: settings.max_survivors]
    prompt_index, outcome_index = np.divmod(best, len(outcomes))
    added = {
        "effect": pa.array(effect),
        "effect_prompt": pa.array(np.array(prompts)[prompt_index], pa.string()),
        "effect_choice": pa.array(np.array(outcomes)[outcome_index], pa.string()),
        "control_effect": pa.array(control),
    }
    table = candidates
    for name, column in added.items():
        table = table.append_column(name, column)
    return table.take(order).append_column("rank", pa.array(np.arange(1, len(order) + 1), pa.int32()))


def _shifts(screen: pa.Table, arm: str, n: int, prompts: list[str], outcomes: list[str]) -> np.ndarray:
    """[n candidates, prompts, outcomes]: p at dose 1 minus p at dose 0."""
    p = np.full((2, n, len(prompts), len(outcomes)), np.nan)
    rows = screen.filter(pc.and_(pc.equal(screen["arm"], arm), pc.is_in(screen["dose"], pa.array([0.0, 1.0]))))
    dose = rows["dose"].to_numpy().astype(int)
    candidate = rows["candidate"].to_numpy()
    prompt = pc.index_in(rows["prompt"], pa.array(prompts)).to_numpy()
    for i, outcome in enumerate(outcomes):
        p[dose, candidate, prompt, i] = rows[f"p_{outcome}"].to_numpy()
    if np.isnan(p).any():
        raise ValueError(f"the screen lacks rows of arm {arm!r}: every candidate needs doses 0 and 1 on every prompt")
    return p[1] - p[0]
