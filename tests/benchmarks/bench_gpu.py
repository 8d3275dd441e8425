"""An 8B-shaped random model in bfloat16 on a GPU, against the original style and against the device's own bound.

Runs alone where nothing but torch, transformers, numpy, pyarrow and safetensors is installed:
`python -m tests.benchmarks.bench_gpu`. Without a GPU it runs the same steps on a small shape, which shows that they
run and nothing about their speed, so that no target is judged.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tasks.engines.bank import Bank
from tasks.engines.interface import Capture, Cell, Edit
from tasks.engines.torch_engine import TorchEngine
from tasks.models.layout import Layout
from tests.benchmarks.roofline import Device, decode_seconds
from tests.benchmarks.rows import row
from tests.benchmarks.workload import (
    alternating,
    exhaust,
    make_trials,
    median_ratio,
    original_step,
    random_bank,
    random_sae,
    seconds_of,
    trials_per_second,
)


@dataclass(frozen=True)
class Size:
    layers: int
    d_model: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    d_sae: int
    features: int
    prompt: int
    new_tokens: int
    in_flight: int
    waves: int
    """Trials of a measurement, in batches in flight."""
    rounds: int


LLAMA_3_1_8B = Size(32, 4096, 14336, 32, 8, 128256, 32768, 2787, 200, 100, 512, 2, 3)
SMALL = Size(4, 128, 256, 4, 2, 1000, 512, 64, 40, 20, 16, 2, 1)

VALUES, PROMPTS = (4.0, 8.0), 2
"""Four conditions of the screen."""


def run() -> list[dict]:
    cuda = torch.cuda.is_available()
    device, size = torch.device("cuda" if cuda else "cpu"), LLAMA_3_1_8B if cuda else SMALL
    rows = _measure(device, size)
    where = torch.cuda.get_device_name() if cuda else "a small shape on the CPU: no target is judged"
    return [{**r, "name": f"gpu: {r['name']}", "note": "; ".join(filter(None, (r["note"], where)))} for r in rows]


def _measure(device: torch.device, size: Size) -> list[dict]:
    judged = device.type == "cuda"
    limits = Device.measured(device)
    loaded = random_llama(size, device)
    bank = random_bank(size.features, size.layers, size.d_model)
    prompts = _prompts(size)
    edits = [Edit(index, VALUES[0], "decode") for index in range(len(bank))]
    n = size.in_flight * size.waves
    trials = make_trials(prompts[:1], edits, n, size.new_tokens)
    unedited = make_trials(prompts[:1], None, n, size.new_tokens)
    mixed = make_trials(prompts, edits, n, size.new_tokens)
    sparse = Capture(rows=range(len(bank)), positions=("last", "final"))
    dense = Capture(rows=range(len(bank)), positions=("decode",))

    original = 1 / (size.new_tokens * original_step(loaded, [_sae(size, device)], _middle(prompts[0], size)))
    engine = TorchEngine(loaded, bank, batch_size=size.in_flight, end_tokens=())
    measures = [
        lambda: trials_per_second(engine, unedited),
        lambda: trials_per_second(engine, trials),
        lambda: trials_per_second(engine, trials, sparse),
        lambda: trials_per_second(engine, trials, dense),
        lambda: trials_per_second(engine, mixed, sparse),
    ]
    alternating(1, *measures)  # compiles, captures graphs
    if judged:
        torch.cuda.reset_peak_memory_stats()
    plain, edited, captured, every_token, two_prompts = alternating(size.rounds, *measures)
    peak = _peak_bytes(device)
    screen = _screen_seconds(engine, bank, prompts)

    speed = sorted(captured)[len(captured) // 2]
    bound = size.in_flight / size.new_tokens / _roofline_step(loaded, limits, size)
    full = engine.batch_size == size.in_flight
    return [
        row("copy bandwidth, read plus written", limits.bytes_per_second / 1e12, "TB/s"),
        row("matrix product in bfloat16", limits.flops_per_second / 1e12, "TFLOP/s"),
        row("distinct edits in flight", float(engine.batch_size), "trials", size.in_flight, judged=judged),
        row("edited trials with features captured", speed, "1/s", note="" if full else "the batch was halved"),
        row("the same in tokens", speed * size.new_tokens, "tokens/s"),
        row("against the original style", speed / original, "x", at_least=100, judged=judged),
        row("share of the roofline", speed / bound, "share", at_least=0.5, judged=judged),
        row("edits and captures, of plain throughput", median_ratio(captured, plain), "share", 0.95, judged=judged),
        row("edits alone, of plain throughput", median_ratio(edited, plain), "share"),
        row("edits and captures of every token, of plain throughput", median_ratio(every_token, plain), "share"),
        row("two prompts mixed, of one prompt", median_ratio(two_prompts, captured), "share"),
        row("peak memory", peak / 2**30, "GiB"),
        row(f"screen of {len(bank):,} features x 4 conditions", screen, "s", at_most=10, judged=judged),
    ]


def random_llama(size: Size, device: torch.device) -> SimpleNamespace:
    """A model with random weights and the places of its residual stream."""
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.d_model,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.d_model // size.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    return SimpleNamespace(model=model, layout=Layout.of(model), device=device)


def _prompts(size: Size) -> list[tuple[int, ...]]:
    g = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(size.vocabulary, (size.prompt,), generator=g).tolist()) for _ in range(PROMPTS)]


def _middle(prompt: tuple[int, ...], size: Size) -> tuple[int, ...]:
    """The sequence in the middle of the answer."""
    return (*prompt, *prompt[: size.new_tokens // 2])


def _sae(size: Size, device: torch.device):
    return random_sae(size.layers // 2, size.d_model, size.d_sae, device)


def _roofline_step(loaded: SimpleNamespace, limits: Device, size: Size) -> float:
    return decode_seconds(loaded.model.config, limits, size.in_flight, size.prompt, size.new_tokens / 2)


def _screen_seconds(engine: TorchEngine, bank: Bank, prompts: list[tuple[int, ...]]) -> float:
    """Every feature under every condition, after a run of one batch."""
    cells = [
        Cell(i, prompt, Edit(feature, value))
        for i, (feature, value, prompt) in enumerate(
            (feature, value, prompt) for feature in range(len(bank)) for value in VALUES for prompt in prompts
        )
    ]
    groups = [[1, 2], [3]]
    exhaust(engine.first_token(cells[: engine.batch_size], groups))
    return seconds_of(lambda: exhaust(engine.first_token(cells, groups)))


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    for result in run():
        print(result)
