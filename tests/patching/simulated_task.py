"""Simulated trials as a finished shard: `TOMOGRAPH_PLUGINS=tests.patching.simulated_task`."""

from __future__ import annotations

from pydantic import BaseModel

from tasks.context import ShardContext
from tasks.spec import TaskKind
from tests.patching.simulated import BASE, HIGH, simulate, survivors


class SimulatedParams(BaseModel):
    phase: str
    planted: int


def run(ctx: ShardContext) -> None:
    """Feature `planted` stops the game at its high value; its responses then hold the word "enough"."""
    p: SimulatedParams = ctx.params

    def rates(prompt, arm, candidate, value):
        hit = (arm, candidate, value) == ("feature", p.planted, HIGH)
        return {"bet": 0.05, "stop": 0.9, "invalid": 0.05} if hit else BASE

    trials = simulate(rates, ctx.seed, candidates=3, phase=p.phase)
    said = {"bet": "1) Bet", "stop": "2) Stop, enough", "invalid": "3"}
    trials = trials.append_column("response", [[said[choice] for choice in trials["choice"].to_pylist()]])
    half = len(trials) // 2
    for chunk in ctx.chunks(2):
        chunk.table("trials", trials.slice(chunk.index * half, half if chunk.index == 0 else None))
        chunk.commit()


class NoParams(BaseModel):
    pass


def run_survivors(ctx: ShardContext) -> None:
    ctx.table("survivors", survivors(3, {1: ("risky", "stop", 0.5)}))


TRIALS = TaskKind("simulated.trials", 1, SimulatedParams, "tests.patching.simulated_task:run")
SURVIVORS = TaskKind("simulated.survivors", 1, NoParams, "tests.patching.simulated_task:run_survivors")
KINDS = (TRIALS, SURVIVORS)
