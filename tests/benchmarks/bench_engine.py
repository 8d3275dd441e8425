"""Edited generation on SmolLM2: the engine against the original style and against a cached loop, in one run.

original style   one trial at a time, no key-value cache, the whole dictionary encoded and decoded at each step
cached loop      one trial at a time with a key-value cache and a one-row edit in a hook
engine           `TorchEngine`, trials of mixed features, layers and values

The two slow ones run few steps and are scaled to trials of the same length; a step of the original style is timed
at the middle of the answer, where the sequence has its mean length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from tasks.engines.bank import Bank
from tasks.engines.interface import Capture, Cell, Edit, Trial
from tasks.engines.torch_engine import TorchEngine
from tasks.models.layout import block_output, replace_block_output
from tasks.models.load import LoadedModel, load
from tasks.models.spec import ModelRef
from tasks.sae.sae import SAE, Threshold

LAYERS = (8, 14, 20, 26)
D_SAE = 4608
PROMPT_TOKENS = 150
NEW_TOKENS = 100
TRIALS = 128
ROUNDS = 3


def random_sae(layer: int, d_model: int) -> SAE:
    g = torch.Generator().manual_seed(layer)
    w = torch.nn.functional.normalize(torch.randn(D_SAE, d_model, generator=g), dim=-1)
    gate = Threshold(torch.full((D_SAE,), 1.0))
    return SAE(layer, w.T.contiguous(), torch.zeros(D_SAE), w, torch.zeros(d_model), gate, "random")


def run() -> list[dict]:
    loaded = load(ModelRef(dtype="bfloat16"))
    saes = {layer: random_sae(layer, loaded.layout.d_model) for layer in LAYERS}
    features = [(layer, feature) for layer in LAYERS for feature in range(0, 2000, 4)]
    bank = Bank.build(saes.__getitem__, features)
    prompt = tuple(range(1000, 1000 + PROMPT_TOKENS))
    edits = [Edit(row, 4.0, "decode") for row in range(0, len(bank), 7)]
    engine = TorchEngine(loaded, bank, saes.__getitem__, end_tokens=())

    plain = _trials_per_second(engine, _trials(prompt, edits))
    original = 1 / (NEW_TOKENS * _original_step(loaded, saes, prompt))
    cached = 1 / _cached_trial(loaded, bank, prompt)
    yield_of_capture = _capture_ratio(engine, prompt, edits)
    screen = _cells_per_second(engine, prompt, edits)
    sampling = plain / 30
    return [
        _row("edited trials per second", plain, "1/s"),
        _row("engine against original style", plain / original, "x", 50),
        _row("engine against cached batch-1 loop", plain / cached, "x", 8),
        _row("screen against sampling 30 trials, cells per second", screen / sampling, "x", 300),
        _row("throughput with 2,000 features captured", yield_of_capture, "share", 0.95),
    ]


def _row(name: str, value: float, unit: str, target: float | None = None) -> dict:
    return {
        "name": f"engine: {name}",
        "value": round(value, 3),
        "unit": unit,
        "target": None if target is None else f">= {target}",
        "holds": None if target is None else value >= target,
    }


def _trials(prompt: tuple[int, ...], edits: list[Edit], n: int = TRIALS, new_tokens: int = NEW_TOKENS) -> list[Trial]:
    return [Trial(i, prompt, i, edits[i % len(edits)], new_tokens, temperature=0.7) for i in range(n)]


def _seconds(run: Iterator) -> float:
    start = time.perf_counter()
    for _ in run:
        pass
    return time.perf_counter() - start


def _trials_per_second(engine: TorchEngine, trials: list[Trial], capture: Capture | None = None) -> float:
    return len(trials) / _seconds(engine.generate(trials, capture))


def _capture_ratio(engine: TorchEngine, prompt: tuple[int, ...], edits: list[Edit]) -> float:
    """Throughput with captures over throughput without, the median of alternating rounds."""
    capture = Capture(rows=range(2000), positions=("last", "final"))
    trials = _trials(prompt, edits, new_tokens=30)
    ratios = []
    for _ in range(ROUNDS):
        without = _trials_per_second(engine, trials)
        ratios.append(_trials_per_second(engine, trials, capture) / without)
    return sorted(ratios)[len(ratios) // 2]


def _cells_per_second(engine: TorchEngine, prompt: tuple[int, ...], edits: list[Edit]) -> float:
    cells = [Cell(i, prompt, edits[i % len(edits)]) for i in range(1024)]
    return len(cells) / _seconds(engine.first_token(cells, [[1], [2]], temperature=0.7))


@torch.inference_mode()
def _original_step(loaded: LoadedModel, saes: dict[int, SAE], prompt: tuple[int, ...]) -> float:
    """Seconds of one generated token without a cache, in the middle of the answer; the median of three layers."""
    ids = torch.tensor([[*prompt, *range(2000, 2000 + NEW_TOKENS // 2)]])
    times = []
    for layer in LAYERS[:3]:
        sae = saes[layer]

        def hook(module, args, output, sae=sae):
            hidden = block_output(output).clone()
            code = sae.encode(hidden[:, -1])
            code[:, 7] = 4.0
            hidden[:, -1] = sae.decode(code).to(hidden.dtype)
            return replace_block_output(output, hidden)

        handle = loaded.layout.blocks[layer].register_forward_hook(hook)
        loaded.model(input_ids=ids, use_cache=False)
        start = time.perf_counter()
        loaded.model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
        times.append(time.perf_counter() - start)
        handle.remove()
    return sorted(times)[1]


@torch.inference_mode()
def _cached_trial(loaded: LoadedModel, bank: Bank, prompt: tuple[int, ...]) -> float:
    """Seconds of one trial with transformers' own generate (sampled, cached) and a one-row edit in a hook."""
    u, b, theta, w = bank.u[3], bank.b[3], bank.theta[3], bank.w[3]

    def hook(module, args, output):
        hidden = block_output(output).clone()
        h = hidden[:, -1].float()
        pre = h @ u + b
        f = torch.where(pre > theta, pre, 0.0)
        hidden[:, -1] = (h + (4.0 - f)[:, None] * w).to(hidden.dtype)
        return replace_block_output(output, hidden)

    ids = torch.tensor([prompt])
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
    for row in run():
        print(row)
