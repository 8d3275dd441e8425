"""The functional check, from its tables."""

from __future__ import annotations

from tasks.artifacts.shard import Shard
from tasks.outliers.conditions import CONDITIONS
from tasks.outliers.report.data import Ablation, Effect
from tasks.outliers.tables import ABLATION, DIMS, EFFECTS
from tasks.report.tables import rows


def ablation(shard: Shard) -> Ablation:
    """Effects by condition, and the tokens they were measured on."""
    measured = rows(ABLATION.read(shard, ["condition", "sequence", "tokens"]))
    plain = {r["sequence"]: r["tokens"] for r in measured if r["condition"] == "none"}
    zeroed = {r["condition"]: r["dims"] for r in rows(DIMS.read(shard)) if not r["draw"]}
    found = [
        Effect(
            condition=r["condition"],
            n_dims=r["n_dims"],
            draws=r["draws"],
            perplexity=r["perplexity"],
            ratio=r["perplexity_ratio"],
            ratio_low=r["perplexity_ratio_low"],
            ratio_high=r["perplexity_ratio_high"],
            top1=r["top1_probability"],
            top1_change=r["top1_change"],
            top1_low=r["top1_change_low"],
            top1_high=r["top1_change_high"],
        )
        for r in rows(EFFECTS.read(shard))
    ]
    found.sort(key=lambda e: CONDITIONS.index(e.condition))
    return Ablation(
        sequences=len(plain), tokens=sum(plain.values()), effects=found, largest=zeroed.get("largest") or []
    )


def in_words(effect: Effect) -> str:
    """'all 3 systematic dimensions', '3 random dimensions, 5 draws'."""
    n = effect.n_dims
    plural = "" if n == 1 else "s"
    draws = f", {effect.draws} draws" if effect.draws > 1 else ""
    return {
        "none": "nothing",
        "systematic": f"{'all ' if n > 1 else 'the '}{n} systematic dimension{plural}",
        "largest": f"the {n} largest" if n > 1 else "the largest one",
        "random_systematic": f"{n} random dimension{plural}{draws}",
        "random_largest": f"{n} random dimension{plural}{draws}",
    }[effect.condition]
