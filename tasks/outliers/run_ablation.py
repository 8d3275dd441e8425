"""Task `outliers.ablation`: what the model loses without the dimensions that were found."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from tasks.context import ShardContext
from tasks.models.load import load
from tasks.outliers.ablation import Ablation, Measured
from tasks.outliers.conditions import FOUND_BY, Condition, conditions, found_dims
from tasks.outliers.effects import effects
from tasks.outliers.spec import AblationParams
from tasks.outliers.tables import ABLATION, DIMENSIONS, DIMS, EFFECTS


def run(ctx: ShardContext) -> None:
    """Tables `ablation` (a row per condition, draw and sequence), `dims`, `effects`. A chunk per condition and draw."""
    p: AblationParams = ctx.params
    prepared, summary = ctx.input("prepared"), ctx.input("summary")
    found = found_dims(DIMENSIONS.read(summary, FOUND_BY), summary.json("summary"))
    plan = conditions(found, prepared.json("study")["model_info"]["d_model"], p.settings, ctx.seed)
    sequences = prepared.table("sequences", ["tokens"]).slice(0, p.settings.sequences)["tokens"].to_pylist()
    ablation = None
    for chunk in ctx.chunks(len(plan)):
        if ablation is None:
            ctx.log(f"loading {p.model.source}")
            loaded = load(p.model, ctx.runtime.device, p.model_fingerprint, offload=True)
            ablation = Ablation(loaded, p.batch_size)
        condition, before = plan[chunk.index], chunk.index * len(sequences)

        def tell(done: int, before: int = before, name: str = condition.name) -> None:
            ctx.progress(before + done, len(plan) * len(sequences), "sequences", name)

        measured = ablation.measure(sequences, condition.dims, tell)
        chunk.table(ABLATION.name, _rows(condition, measured))
        chunk.table(DIMS.name, DIMS.from_rows([_dims(condition)]))
        chunk.count(conditions=1, tokens=sum(one.tokens for one in measured))
        chunk.commit()
    ctx.table(EFFECTS.name, effects(ABLATION.read(ctx.committed), ctx.seed))
    ctx.count(sequences=len(sequences))
    if ablation is not None:
        ctx.note("batch_size", ablation.batch_size)
        ctx.note("spread", loaded.spread)


def _rows(condition: Condition, measured: Sequence[Measured]) -> pa.Table:
    rows = [
        {
            "condition": condition.name,
            "draw": condition.draw,
            "n_dims": len(condition.dims),
            "sequence": sequence,
            "tokens": one.tokens,
            "nll": one.nll,
            "top1_probability": one.top1_probability,
            "correct": one.correct,
        }
        for sequence, one in enumerate(measured)
    ]
    return ABLATION.from_rows(rows)


def _dims(condition: Condition) -> dict:
    return {"condition": condition.name, "draw": condition.draw, "dims": list(condition.dims)}
