"""Task `patching.verdict`: the verdict on all trials of a study."""

from __future__ import annotations

import pyarrow as pa

from tasks.artifacts.shard import Shard
from tasks.context import ShardContext
from tasks.patching.effects import CELL
from tasks.patching.spec import VerdictParams
from tasks.patching.tables import CONFIRM, CONTROLS, EFFECTS, SURVIVORS, TRIALS, VERDICT
from tasks.patching.verdict import judge

_COLUMNS = [*CELL, "feature", "trial", "seed", "tokens", "n_tokens", "choice"]
_PREDICTED = ["candidate", "effect", "effect_prompt", "effect_choice"]


def run(ctx: ShardContext) -> None:
    """Outputs: tables `effects`, `controls`, `verdict`, `confirm`; json `findings`."""
    params: VerdictParams = ctx.params
    discovery = _trials(ctx.inputs("trials"))
    confirmation = _trials(ctx.inputs("confirmation")) if "confirmation" in ctx.spec.inputs else None
    verdict = judge(discovery, confirmation, SURVIVORS.read(ctx.input("survivors"), _PREDICTED), params)
    ctx.table(EFFECTS.name, verdict.effects)
    ctx.table(CONTROLS.name, verdict.controls)
    ctx.table(VERDICT.name, verdict.verdict)
    ctx.table(CONFIRM.name, verdict.confirm)
    ctx.json("findings", verdict.findings)
    families = verdict.findings["families"]
    tests = {f"{name}_tests": family["tests"] for name, family in families.items()}
    ctx.count(**tests, discoveries=len(verdict.verdict), features=len(verdict.confirm))
    if confirmation is not None:
        ctx.count(confirmed=sum(family["confirmed"] for family in families.values()))
    for alarm in verdict.findings["alarms"]:
        ctx.log(alarm["text"])


def _trials(shards: list[Shard]) -> pa.Table:
    return pa.concat_tables([TRIALS.read(shard, _COLUMNS) for shard in shards])
