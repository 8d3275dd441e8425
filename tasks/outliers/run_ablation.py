"""Task `outliers.ablation`: what the model loses without the dimensions that were found."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from tasks.context import ShardContext
from tasks.models.load import load
from tasks.outliers.ablation import Ablation, Measured
from tasks.outliers.conditions import Condition, conditions, found_dims
from tasks.outliers.effects import effects
from tasks.outliers.spec import AblationParams

ABLATION = pa.schema(
    [
        ("condition", pa.string()),
        ("draw", pa.int32()),
        ("n_dims", pa.int32()),
        ("sequence", pa.int32()),
        ("tokens", pa.int32()),
        ("nll", pa.float64()),
        ("top1_probability", pa.float64()),
        ("correct", pa.int32()),
    ]
)
DIMS = pa.schema([("condition", pa.string()), ("draw", pa.int32()), ("dims", pa.list_(pa.int32()))])


def run(ctx: ShardContext) -> None:
    """Tables `ablation` (a row per condition, draw and sequence), `dims`, `effects`. A chunk per condition and draw."""
    p: AblationParams = ctx.params
    prepared, summary = ctx.input("prepared"), ctx.input("summary")
    found = found_dims(summary.table("dimensions"), summary.json("summary"))
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
        chunk.table("ablation", _rows(condition, measured))
        chunk.table("dims", pa.Table.from_pylist([_dims(condition)], schema=DIMS))
        chunk.count(conditions=1, tokens=sum(one.tokens for one in measured))
        chunk.commit()
    ctx.table("effects", effects(ctx.committed.table("ablation"), ctx.seed))
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
    return pa.Table.from_pylist(rows, schema=ABLATION)


def _dims(condition: Condition) -> dict:
    return {"condition": condition.name, "draw": condition.draw, "dims": list(condition.dims)}
