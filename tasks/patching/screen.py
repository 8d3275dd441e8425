"""Task `patching.screen`: exact first-token probabilities of each choice under every edit.

The decision is usually the first token of the answer. Its probability under an edit follows from one forward pass
of one token on the prompt's shared keys and values: nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tasks.context import ShardContext
from tasks.engines.bank import Bank
from tasks.engines.interface import Cell, CellResult, Edit
from tasks.engines.torch_engine import TorchEngine
from tasks.models.load import load
from tasks.patching import tables
from tasks.patching.dictionaries import sae_cache
from tasks.patching.scenario import INVALID
from tasks.patching.spec import Arm, ScreenParams
from tasks.patching.tables import CANDIDATES
from tasks.text.prompts import encode

CANDIDATES_PER_CHUNK = 32


def dose_value(value_low: float, value_high: float, dose: float) -> float:
    """The patch value at a dose: 0 is the low group's mean, 1 the high group's, linear between and beyond."""
    return value_low + dose * (value_high - value_low)


@dataclass(frozen=True)
class Row:
    """One row of the screen: what was edited, before its probabilities are known."""

    prompt: str
    arm: Arm
    edit: Edit | None
    candidate: int | None = None
    layer: int | None = None
    feature: int | None = None
    dose: float | None = None


def run(ctx: ShardContext) -> None:
    """Table `screen`; unedited and reconstructed prompts appear once, in the shard of the first candidates."""
    p: ScreenParams = ctx.params
    contrast = ctx.input("contrast")
    everything = CANDIDATES.read(contrast).to_pylist()
    candidates = everything[p.start : p.stop]
    bank = Bank.from_tensors(next(contrast.torch_tensors("bank")))
    loaded = load(p.model, ctx.runtime.device, p.model_fingerprint)
    engine = TorchEngine(loaded, bank, sae_cache(ctx, p.saes).get, ctx.runtime.batch_size)
    tokens = {prompt.name: tuple(encode(loaded.tokenizer, prompt.text, p.frame)) for prompt in p.prompts}
    groups = [choice.tokens for choice in p.choices]
    table = tables.screen([choice.name for choice in p.choices])

    def measure(rows: list[Row]) -> Iterator[tuple[Row, CellResult]]:
        cells = [Cell(i, tokens[row.prompt], row.edit) for i, row in enumerate(rows)]
        for result in engine.first_token(cells, groups, p.temperature, p.top_p):
            yield rows[result.id], result

    plain = [Row(prompt.name, "baseline", None) for prompt in p.prompts]
    baseline = {row.prompt: result.probabilities for row, result in measure(plain)}
    for chunk in ctx.chunks(-(-len(candidates) // CANDIDATES_PER_CHUNK)):
        first = chunk.index * CANDIDATES_PER_CHUNK
        block = candidates[first : first + CANDIDATES_PER_CHUNK]
        rows = [row for candidate in block for row in candidate_rows(candidate, p)]
        if p.start == 0 and chunk.index == 0:
            rows = plain + reconstruction_rows(everything, p) + rows
        measured = [_record(row, result, baseline[row.prompt], p) for row, result in measure(rows)]
        chunk.table(table.name, table.from_rows(measured))
        chunk.count(cells=len(rows))
        chunk.commit()
        ctx.progress(first + len(block), len(candidates), unit="candidates")


def candidate_rows(candidate: dict, p: ScreenParams) -> list[Row]:
    """Every prompt and dose of one candidate, along its own direction and along its random control."""
    rows = []
    for prompt in p.prompts:
        for arm, bank_row in (("feature", candidate["bank_row"]), ("random", candidate["control_row"])):
            for dose in p.settings.doses:
                value = dose_value(candidate["value_low"], candidate["value_high"], dose)
                edit = Edit(bank_row, value, p.scope, p.mode)
                where = candidate["candidate"], candidate["layer"], candidate["feature"]
                rows.append(Row(prompt.name, arm, edit, *where, dose))
    return rows


def reconstruction_rows(candidates: list[dict], p: ScreenParams) -> list[Row]:
    """Each prompt with the SAE of each layer in the stream and nothing set: the effect of reconstruction alone."""
    a_row_of = {candidate["layer"]: candidate["bank_row"] for candidate in reversed(candidates)}
    return [
        Row(prompt.name, "reconstruction", Edit(row, None, p.scope, "reconstruct"), layer=layer)
        for prompt in p.prompts
        for layer, row in sorted(a_row_of.items())
    ]


def _record(row: Row, result: CellResult, baseline, p: ScreenParams) -> dict:
    names = [choice.name for choice in p.choices]
    mass = dict(zip(names, result.probabilities.tolist(), strict=True))
    before = dict(zip(names, baseline.tolist(), strict=True))
    mass[INVALID], before[INVALID] = 1 - sum(mass.values()), 1 - sum(before.values())
    return {
        "candidate": row.candidate,
        "layer": row.layer,
        "feature": row.feature,
        "prompt": row.prompt,
        "arm": row.arm,
        "dose": row.dose,
        "value": row.edit.value if row.edit else None,
        "f_before": result.f_before,
        "relative_delta": result.relative_delta,
        **{tables.probability(name): mass[name] for name in mass},
        **{tables.shift(name): mass[name] - before[name] for name in mass},
    }
