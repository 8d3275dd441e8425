"""Edited generation on SmolLM2: the torch engine against the original style and against a cached loop, in one run.

original style   one trial at a time, no key-value cache, the whole dictionary encoded and decoded at each step
cached loop      one trial at a time with a key-value cache and a one-row edit in a hook
engine           `TorchEngine`, trials of mixed features, layers and values

The two slow ones run few steps and are scaled to trials of the same length; a step of the original style is timed
at the middle of the answer, where the sequence has its mean length.
"""

from __future__ import annotations

import time

import torch

from tasks.engines.bank import Bank
from tasks.engines.interface import Capture, Cell, Edit
from tasks.engines.torch_engine import TorchEngine
from tasks.models.layout import block_output, replace_block_output
from tasks.models.load import LoadedModel, load
from tasks.models.spec import ModelRef
from tests.benchmarks.rows import row
from tests.benchmarks.workload import (
    alternating,
    exhaust,
    make_trials,
    median_ratio,
    original_step,
    random_sae,
    seconds_of,
    trials_per_second,
)

LAYERS = (8, 14, 20, 26)
D_SAE = 4608
PROMPT = tuple(range(1000, 1150))
NEW_TOKENS = 100
SHORT = 30
"""New tokens where only a ratio is wanted."""
ANSWER = 8
"""New tokens of an answer whose first ones decide."""
TRIALS = 128
ROUNDS = 3
CAPTURE = Capture(rows=range(2000), positions=("last", "final"))


def run() -> list[dict]:
    loaded = load(ModelRef(dtype="bfloat16"))
    saes = {layer: random_sae(layer, loaded.layout.d_model, D_SAE) for layer in LAYERS}
    features = [(layer, feature) for layer in LAYERS for feature in range(0, 2000, 4)]
    bank = Bank.build(saes.__getitem__, features)
    edits = [Edit(index, 4.0, "decode") for index in range(0, len(bank), 7)]
    engine = TorchEngine(loaded, bank, saes.__getitem__, end_tokens=())
    a_row_each = TorchEngine(loaded, bank, saes.__getitem__, end_tokens=(), branching=False)
    trials = make_trials([PROMPT], edits, TRIALS, SHORT)
    unedited = make_trials([PROMPT], None, TRIALS, SHORT)

    whole = trials_per_second(engine, make_trials([PROMPT], edits, TRIALS, NEW_TOKENS))
    original = 1 / (NEW_TOKENS * original_step(loaded, [saes[layer] for layer in LAYERS[:3]], _middle()))
    cached = 1 / _cached_trial(loaded, bank)
    plain, edited, captured = alternating(
        ROUNDS,
        lambda: trials_per_second(a_row_each, unedited),
        lambda: trials_per_second(a_row_each, trials),
        lambda: trials_per_second(a_row_each, trials, CAPTURE),
    )
    answers = make_trials([PROMPT], None, TRIALS, ANSWER)
    together, apart = alternating(
        ROUNDS, lambda: trials_per_second(engine, answers), lambda: trials_per_second(a_row_each, answers)
    )
    screen = _cells_per_second(engine, edits)
    rows = [
        row("edited trials per second", whole, "1/s"),
        row("engine against original style", whole / original, "x", at_least=50),
        row("engine against cached batch-1 loop", whole / cached, "x", at_least=8),
        row("screen against sampling 30 trials, cells per second", screen / (whole / 30), "x", at_least=300),
        row("throughput of edited trials, of plain ones", median_ratio(edited, plain), "share", at_least=0.95),
        row(
            "short answers of one cell, agreeing ones computed once, against a row each",
            median_ratio(together, apart),
            "x",
        ),
        row("throughput with 2,000 features captured", median_ratio(captured, edited), "share", at_least=0.95),
    ]
    return [{**r, "name": f"engine: {r['name']}"} for r in rows]


def _middle() -> tuple[int, ...]:
    """The sequence in the middle of the answer."""
    return (*PROMPT, *range(2000, 2000 + NEW_TOKENS // 2))


def _cells_per_second(engine: TorchEngine, edits: list[Edit]) -> float:
    cells = [Cell(i, PROMPT, edits[i % len(edits)]) for i in range(1024)]
    return len(cells) / seconds_of(lambda: exhaust(engine.first_token(cells, [[1], [2]], temperature=0.7)))


@torch.inference_mode()
def _cached_trial(loaded: LoadedModel, bank: Bank) -> float:
    """Seconds of one trial with transformers' own generate (sampled, cached) and a one-row edit in a hook."""
    u, b, theta, w = bank.u[3], bank.b[3], bank.theta[3], bank.w[3]

    def hook(module, args, output):
        hidden = block_output(output).clone()
        h = hidden[:, -1].float()
        pre = h @ u + b
        f = torch.where(pre > theta, pre, 0.0)
        hidden[:, -1] = (h + (4.0 - f)[:, None] * w).to(hidden.dtype)
        return replace_block_output(output, hidden)

    ids = torch.tensor([PROMPT])
    handle = loaded.layout.blocks[int(bank.layer[3])].register_forward_hook(hook)
    try:
        start = time.perf_counter()
        loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=0.7,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )
        return time.perf_counter() - start
    finally:
        handle.remove()


if __name__ == "__main__":
    for result in run():
        print(result)
