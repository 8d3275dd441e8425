"""What the benchmarks of the engines share: dictionaries, prompts, trials, timing and rows of results.

Imports nothing that a bare GPU machine lacks (torch, transformers, numpy, pyarrow, safetensors).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tasks.engines.bank import FEATURE, Bank
from tasks.engines.interface import Capture, Edit, Engine, Trial
from tasks.models.layout import block_output, replace_block_output
from tasks.sae.sae import SAE, Threshold

TEXT = """The harbour lay quiet before dawn, and only the ferry's lamp moved over the water. Marta had come down early,
because the letter said that the boxes would be unloaded first. She counted the men on the quay: two porters, a clerk
with a ledger under his arm, and somebody she did not know. The clerk nodded to her and asked whether she had brought
the key. She had, of course, but she wanted to hear from him what was written in the ledger before she gave it away.
He turned the pages slowly. Seven boxes of books, he said, one clock, a painting in its frame, and a cabinet that had
been sealed in Lisbon by the owner himself. Nobody had opened it since. The porters laughed, since they had carried
it and it weighed nothing at all. Marta looked at the seal, then at the stranger, and understood why he had come. He
was the younger brother, the one whom nobody in the house would speak of. What he said next surprised everyone."""


VLLM_PYTHON = Path(".venv-vllm/bin/python")
"""Of the environment that holds vLLM."""


def same_threads() -> dict[str, str]:
    """This process's environment, with its number of threads for every library.

    vLLM would leave one core to its scheduler and take one thread of each other core.
    """
    threads = torch.get_num_threads()
    cores = sorted(os.sched_getaffinity(0))[:threads]
    bound = ",".join(map(str, cores))
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": bound}


def text_prompt(tokenizer: Any, n_tokens: int, number: int = 0) -> tuple[int, ...]:
    """Token ids of ordinary prose; prompts of different numbers end at different words, and share no first token."""
    ids = tokenizer(TEXT * 4, add_special_tokens=False)["input_ids"]
    return tuple(ids[7 * number : 7 * number + n_tokens])


def random_sae(layer: int, d_model: int, d_sae: int, device: torch.device | str = "cpu") -> SAE:
    """Unit directions that read what they write."""
    g = torch.Generator(device).manual_seed(layer)
    w = torch.nn.functional.normalize(torch.randn(d_sae, d_model, generator=g, device=device), dim=-1)
    theta, zero = torch.ones(d_sae, device=device), torch.zeros(d_sae, device=device)
    return SAE(layer, w.T.contiguous(), zero, w, torch.zeros(d_model, device=device), Threshold(theta), "random")


def random_bank(n: int, n_layers: int, d_model: int) -> Bank:
    """n rows over all layers in turn, with unit directions that read what they write."""
    w = torch.nn.functional.normalize(torch.randn(n, d_model, generator=torch.Generator().manual_seed(0)), dim=-1)
    return Bank(
        layer=torch.arange(n) % n_layers,
        feature=torch.arange(n) // n_layers,
        kind=torch.full((n,), FEATURE),
        full_encode=torch.zeros(n, dtype=torch.bool),
        u=w,
        b=torch.zeros(n),
        theta=torch.ones(n),
        w=w.clone(),
    )


def make_trials(
    prompts: Iterable[tuple[int, ...]], edits: list[Edit] | None, n: int, new_tokens: int, temperature: float = 0.7
) -> list[Trial]:
    """n trials, over the prompts and the edits in turn; without edits when None."""
    prompts = list(prompts)
    edit_of = lambda i: None if edits is None else edits[i % len(edits)]  # noqa: E731
    return [Trial(i, prompts[i % len(prompts)], i, edit_of(i), new_tokens, temperature) for i in range(n)]


def seconds_of(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def exhaust(results: Iterable) -> None:
    for _ in results:
        pass


def trials_per_second(engine: Engine, trials: list[Trial], capture: Capture | None = None) -> float:
    return len(trials) / seconds_of(lambda: exhaust(engine.generate(trials, capture)))


def alternating(rounds: int, *measures: Callable[[], float]) -> list[list[float]]:
    """Each measure once per round, in turn, so that a machine that slows down slows all: a list per measure."""
    found = [[measure() for measure in measures] for _ in range(rounds)]
    return [list(of_one) for of_one in zip(*found, strict=True)]


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median of the rounds' own ratios."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


@torch.inference_mode()
def original_step(loaded: Any, saes: list[SAE], ids: tuple[int, ...]) -> float:
    """Seconds of one generated token in the original style: no cache, one trial, a whole encode and decode in a hook.

    The median over the dictionaries, whose layers it edits; each is run once before it is timed.
    """
    blocks, device = loaded.layout.blocks, next(loaded.model.parameters()).device
    inputs = torch.tensor([ids], device=device)
    times = []
    for sae in saes:

        def hook(module, args, output, sae=sae):
            hidden = block_output(output).clone()
            code = sae.encode(hidden[:, -1])
            code[:, 7] = 4.0
            hidden[:, -1] = sae.decode(code).to(hidden.dtype)
            return replace_block_output(output, hidden)

        def step() -> int:
            return int(loaded.model(input_ids=inputs, use_cache=False).logits[0, -1].argmax())

        handle = blocks[sae.layer].register_forward_hook(hook)
        step()
        times.append(seconds_of(step))
        handle.remove()
    return median(times)
