"""Sampling whose random numbers belong to the trial, not to the batch.

Each trial owns a stream of uniforms, one per generated token, from a counter-based generator keyed by its seed
(Philox: Salmon et al. 2011). A token is the inverse of the cumulative distribution at that uniform, so one
uniform decides one token and nothing else of the batch does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.engines.interface import Trial

BLOCK = 256


def uniforms(seed: int, n: int) -> np.ndarray:
    """[n] float64 in [0, 1): the trial's uniform for each generated position."""
    return np.random.Generator(np.random.Philox(key=seed)).random(n)


@dataclass(frozen=True)
class Kinds:
    """Which kinds of rows a batch may hold. Known on the host, it spares a device a wait and work for nothing."""

    greedy: bool
    sampled: bool
    nucleus: bool

    @classmethod
    def of(cls, trials: Iterable[Trial]) -> Kinds:
        trials = list(trials)
        return cls(
            greedy=any(trial.temperature == 0 for trial in trials),
            sampled=any(trial.temperature > 0 for trial in trials),
            nucleus=any(trial.temperature > 0 and trial.top_p < 1 for trial in trials),
        )

    @classmethod
    def seen_in(cls, temperature: Tensor, top_p: Tensor) -> Kinds:
        """The kinds of rows of these settings [B]; a device waits."""
        sampled = temperature > 0
        return cls(bool((~sampled).any()), bool(sampled.any()), bool((sampled & (top_p < 1)).any()))


def distribution(logits: Tensor, temperature: Tensor, top_p: Tensor, nucleus: bool = True) -> Tensor:
    """The distribution that a token is drawn from.

    logits [B, V]; temperature [B] > 0; top_p [B] in (0, 1] -> probabilities [B, V] float32.
    Temperature first, then the nucleus: the smallest set of most probable tokens that reaches top_p
    (Holtzman et al. 2020), renormalised. nucleus: False where every top_p is 1.
    """
    # float32 temperatures lift the quotient to float32, without a copy of the logits in between.
    probabilities = torch.softmax(logits / temperature[:, None], dim=-1)
    if not nucleus:
        return probabilities
    return torch.where(top_p[:, None] < 1, _nucleus(probabilities, top_p), probabilities)


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.double().cumsum(-1) - ordered
    kept = torch.where(before < top_p[:, None], ordered, 0.0)
    kept = torch.zeros_like(probabilities).scatter_(-1, order, kept)
    return kept / kept.sum(-1, keepdim=True)


def sample(logits: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor, kinds: Kinds | None = None) -> Tensor:
    """Draw one token per row: logits [B, V]; temperature, top_p, uniform [B] -> [B] int64.

    Rows of temperature 0 take the most probable token (the lowest id among equals). kinds: what the rows may be;
    without it they are looked at.
    """
    kinds = Kinds.seen_in(temperature, top_p) if kinds is None else kinds
    if not kinds.sampled:
        return logits.argmax(-1)
    positive = torch.where(temperature > 0, temperature, 1.0)
    drawn = _inverse_cdf(distribution(logits, positive, top_p, kinds.nucleus), uniform)
    return torch.where(temperature > 0, drawn, logits.argmax(-1)) if kinds.greedy else drawn


def _inverse_cdf(p: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds uniform: p [B, V], uniform [B] float64 -> [B] int64.

    The vocabulary is searched by blocks, then within one: sums in float64, a running sum over few entries.
    """
    batch, vocabulary = p.shape
    blocks = torch.nn.functional.pad(p, (0, -vocabulary % BLOCK)).view(batch, -1, BLOCK)
    mass = blocks.sum(-1, dtype=torch.float64)
    ends = mass.cumsum(-1)
    target = (uniform * ends[:, -1])[:, None]
    block = torch.searchsorted(ends, target, right=True)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1).cumsum(-1, dtype=torch.float64)
    rest = target - (ends - mass).gather(1, block)
    # A target in the last bit of a block's mass may lie beyond its running sum, which is rounded otherwise.
    index = torch.searchsorted(within, rest, right=True).clamp(max=BLOCK - 1)
    return (block * BLOCK + index).squeeze(1).clamp(max=vocabulary - 1)


def group_probabilities(logits: Tensor, groups: list[Tensor], temperature: float, top_p: float) -> Tensor:
    """Mass of each group of token ids under the sampling distribution: logits [B, V] -> [B, G] float64.

    At temperature 0 the mass is 1 for the group that holds the most probable token.
    """
    n = logits.shape[0]
    if temperature == 0:
        p = torch.zeros_like(logits, dtype=torch.float32)
        p.scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    else:
        full = logits.new_full((n,), 1.0, dtype=torch.float32)
        p = distribution(logits, full * temperature, full * top_p, nucleus=top_p < 1)
    return torch.stack([p[:, ids].double().sum(-1) for ids in groups], dim=-1)
