"""Task `patching.trials`: sampled generations under every condition, with the candidates' activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tasks.artifacts.shard import Shard
from tasks.context import ShardContext
from tasks.engines.bank import Bank
from tasks.engines.interface import Capture, Engine, Trial, TrialResult
from tasks.engines.open import open_engine
from tasks.models.load import load_tokenizer
from tasks.patching.cells import Cell, study_cells
from tasks.patching.dictionaries import sae_cache
from tasks.patching.parser import Reader
from tasks.patching.spec import TrialsParams
from tasks.patching.tables import ACTIVATION_ROWS, CANDIDATES, CONFIRM, SURVIVORS, TRIALS
from tasks.text.prompts import encode, response

TRIALS_PER_CHUNK = 512
CAPTURED_POSITIONS = ("last", "final")


@dataclass(frozen=True)
class Planned:
    """A trial and the cell it belongs to."""

    cell: Cell
    number: int
    seed: int


def plan(p: TrialsParams, candidates: list[dict], run_seed: int) -> list[Planned]:
    """Every trial of a shard, in the order of its tables."""
    return [
        Planned(cell, number, cell.seed(run_seed, p.phase, number))
        for cell in study_cells(p, candidates)
        for number in range(p.trial_start, p.trial_stop)
    ]


def run(ctx: ShardContext) -> None:
    """Tables `trials` and `activation_rows`; tensors `activations`: features [rows, candidates] float16.

    Recorded at the last prompt position and at the last position read, after the edit.
    """
    p: TrialsParams = ctx.params
    contrast, chosen = ctx.input("contrast"), ctx.input("candidates")
    all_candidates = CANDIDATES.read(contrast).to_pylist()
    by_index = {row["candidate"]: row for row in all_candidates}
    candidates = [by_index[row["candidate"]] | row for row in chosen_candidates(chosen)]
    planned = plan(p, candidates, ctx.seed)
    tokenizer = load_tokenizer(p.model)
    prompts = {prompt.name: tuple(encode(tokenizer, prompt.text, p.frame)) for prompt in p.prompts}
    capture = Capture(rows=[row["bank_row"] for row in all_candidates], positions=CAPTURED_POSITIONS)
    writer = _Writer(p, tokenizer, all_candidates[0]["unit"] if all_candidates else None)
    with open_engine(
        p.engine,
        p.model,
        Bank.from_tensors(next(contrast.torch_tensors("bank"))),
        sae_cache(ctx, p.saes, "cpu" if p.engine == "vllm" else None).get,  # vLLM's workers take copies
        edits=[one.cell.edit for one in planned if one.cell.edit],
        capture=capture,
        max_length=max(map(len, prompts.values())) + p.max_new_tokens,
        model_fingerprint=p.model_fingerprint,
        device=ctx.runtime.device,
        batch_size=ctx.runtime.batch_size,
    ) as opened:
        _generate(ctx, opened.engine, planned, prompts, capture, writer)
        ctx.note("engine", opened.facts)


def _generate(
    ctx: ShardContext,
    engine: Engine,
    planned: list[Planned],
    prompts: dict[str, tuple[int, ...]],
    capture: Capture,
    writer: _Writer,
) -> None:
    """Run and commit the trials, chunk by chunk."""
    p: TrialsParams = ctx.params
    for chunk in ctx.chunks(-(-len(planned) // TRIALS_PER_CHUNK)):
        block = planned[chunk.index * TRIALS_PER_CHUNK :][:TRIALS_PER_CHUNK]
        trials = [
            Trial(i, prompts[one.cell.prompt], one.seed, one.cell.edit, p.max_new_tokens, p.temperature, p.top_p)
            for i, one in enumerate(block)
        ]
        done = chunk.index * TRIALS_PER_CHUNK
        results: dict[int, TrialResult] = {}
        for result in engine.generate(trials, capture):
            results[result.id] = result
            ctx.progress(done + len(results), len(planned), unit="trials")
        ordered = [results[i] for i in range(len(block))]
        chunk.table(TRIALS.name, writer.trials(block, ordered))
        chunk.table(ACTIVATION_ROWS.name, writer.rows(block, ordered))
        chunk.tensors("activations", {"features": np.concatenate([result.features for result in ordered])})
        chunk.count(trials=len(block), edits=sum(result.edits_applied for result in ordered))
        chunk.commit()


def chosen_candidates(shard: Shard) -> list[dict]:
    """`candidate` of each row of `survivors`; of a verdict's `confirm` also the `prompts` to repeat it on."""
    if SURVIVORS.name in shard:
        return SURVIVORS.read(shard, ["candidate"]).to_pylist()
    return CONFIRM.read(shard, ["candidate", "prompts"]).to_pylist()


class _Writer:
    """Trials and their results as table rows."""

    def __init__(self, p: TrialsParams, tokenizer, unit: str | None):
        self._p, self._tokenizer, self._unit = p, tokenizer, unit
        self._reader = Reader(p.parser)
        self._prompts = {prompt.name: prompt for prompt in p.prompts}

    def trials(self, planned: list[Planned], results: list[TrialResult]) -> pa.Table:
        rows = [self._trial(one, result) for one, result in zip(planned, results, strict=True)]
        return TRIALS.from_rows(rows)

    def _trial(self, one: Planned, result: TrialResult) -> dict:
        said = response(self._tokenizer, result.tokens, self._p.stop_strings)
        decision = self._reader.read(said, self._prompts[one.cell.prompt].fields)
        cell = one.cell
        return {
            "trial_id": one.seed,
            "phase": self._p.phase,
            "prompt": cell.prompt,
            "condition": cell.condition,
            "arm": cell.arm,
            "candidate": cell.candidate,
            "layer": cell.layer,
            "feature": cell.feature,
            "value_name": cell.value_name,
            "value": cell.edit.value if cell.edit else None,
            "unit": self._unit if cell.edit else None,
            "trial": one.number,
            "seed": one.seed,
            "response": said,
            "tokens": np.array(result.tokens, "<i4").tobytes(),
            "n_tokens": len(result.tokens),
            "finish": result.finish,
            "choice": decision.choice,
            "amount": decision.amount,
            "parse_rule": decision.rule,
            "edits_applied": result.edits_applied,
            "f_before": result.f_before,
            "relative_delta": result.relative_delta,
        }

    def rows(self, planned: list[Planned], results: list[TrialResult]) -> pa.Table:
        rows = [
            {"trial_id": one.seed, "position_kind": row.kind, "position": row.position, "token": row.token}
            for one, result in zip(planned, results, strict=True)
            for row in result.rows
        ]
        return ACTIVATION_ROWS.from_rows(rows)
