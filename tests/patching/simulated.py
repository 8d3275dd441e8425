"""Trials drawn from known rates, without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from tasks.patching.spec import VerdictParams, VerdictSettings
from tasks.seeds import derive_seed

PROMPTS, CHOICES = ("safe", "risky"), ("bet", "stop")
OUTCOMES = (*CHOICES, "invalid")
LOW, HIGH = "safe", "risky"
BASE = {"bet": 0.5, "stop": 0.3, "invalid": 0.2}

Rates = Callable[[str, str, int | None, str | None], Mapping[str, float]]
"""(prompt, arm, candidate, value_name) -> P of each outcome."""


def params(temperature: float = 0.7, mode: str = "keep_error", **settings) -> VerdictParams:
    return VerdictParams(
        prompts=list(PROMPTS),
        choices=list(CHOICES),
        low=LOW,
        high=HIGH,
        mode=mode,
        temperature=temperature,
        max_confirmed_features=20,
        settings=VerdictSettings(**settings),
    )


def layer_of(candidate: int) -> int:
    return 8 + candidate % 3


def simulate(
    rates: Rates,
    seed: int,
    *,
    candidates: int = 8,
    n: int = 30,
    n_baseline: int = 60,
    phase: str = "discovery",
    arms: tuple[str, ...] = ("baseline", "reconstruction", "feature", "random"),
) -> pa.Table:
    """The columns of table `trials` that a verdict reads, in shuffled order."""
    rng = np.random.default_rng([seed, phase == "confirmation"])
    cells: list[tuple[str, str, int | None, int | None, str | None]] = []
    for prompt in PROMPTS:
        cells.append((prompt, "baseline", None, None, None))
        cells += [(prompt, "reconstruction", None, layer, None) for layer in sorted({8, 9, 10})]
        for candidate in range(candidates):
            for arm in ("feature", "random"):
                cells += [(prompt, arm, candidate, layer_of(candidate), value) for value in (LOW, HIGH)]
    columns: dict[str, list] = {
        name: []
        for name in ("prompt", "arm", "candidate", "layer", "value_name", "feature", "trial", "choice", "n_tokens")
    }
    for prompt, arm, candidate, layer, value in cells:
        if arm not in arms:
            continue
        p = rates(prompt, arm, candidate, value)
        count = n_baseline if candidate is None else n
        columns["choice"] += rng.choice(OUTCOMES, count, p=[p[o] for o in OUTCOMES]).tolist()
        columns["trial"] += range(count)
        columns["n_tokens"] += [40] * count
        feature = None if candidate is None else 1000 + candidate
        about = {"prompt": prompt, "arm": arm, "candidate": candidate, "layer": layer, "value_name": value}
        for name, item in (about | {"feature": feature}).items():
            columns[name] += [item] * count
    size = len(columns["trial"])
    first = derive_seed("simulated", seed, phase) >> 8
    table = pa.table(
        {
            **{name: pa.array(columns[name], pa.string()) for name in ("prompt", "arm", "value_name", "choice")},
            **{
                name: pa.array(columns[name], pa.int32())
                for name in ("candidate", "layer", "feature", "trial", "n_tokens")
            },
            "seed": pa.array(np.arange(first, first + size)),
            "tokens": pa.array([i.to_bytes(8, "little") for i in range(size)], pa.binary()),
        }
    )
    return table.take(rng.permutation(size))


def survivors(candidates: int = 8, named: Mapping[int, tuple[str, str, float]] = MappingProxyType({})) -> pa.Table:
    """The columns of table `survivors` that a verdict reads: `named` gives prompt, choice and exact effect.

    Any other candidate is predicted to lower bets on the safe prompt by a point.
    """
    rows = [named.get(candidate, ("safe", "bet", -0.01)) for candidate in range(candidates)]
    prompts, choices, effects = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "candidate": pa.array(range(candidates), pa.int32()),
            "effect": pa.array(effects, pa.float64()),
            "effect_prompt": pa.array(prompts, pa.string()),
            "effect_choice": pa.array(choices, pa.string()),
        }
    )


def null(prompt: str, arm: str, candidate: int | None, value: str | None) -> Mapping[str, float]:
    return BASE
