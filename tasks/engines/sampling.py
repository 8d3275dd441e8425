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


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    uniform: Tensor,
    kinds: Kinds | None = None,
    row: Tensor | None = None,
) -> Tensor:
    """Draw tokens: logits [B, V], overwritten; temperature, top_p [B]; uniform [N] and row [N] int64 -> [N] int64.

    Draw i is from the distribution of row[i]; without `row` there is one draw from each row. Rows of temperature 0 take
    the most probable token (the lowest id among equals). kinds: what the rows may be; without it they are looked at.
    """
    kinds = Kinds.seen_in(temperature, top_p) if kinds is None else kinds
    most_probable = logits.argmax(-1) if kinds.greedy or not kinds.sampled else None
    if most_probable is not None and row is not None:
        most_probable = most_probable[row]
    if not kinds.sampled:
        return most_probable
    weights = _weights_(logits, torch.where(temperature > 0, temperature, 1.0))
    if kinds.nucleus:
        probabilities = weights / weights.sum(-1, keepdim=True)
        weights = torch.where(top_p[:, None] < 1, _nucleus(probabilities, top_p), probabilities)
    drawn = _inverse_cdf(weights, uniform, row)
    if not kinds.greedy:
        return drawn
    return torch.where((temperature if row is None else temperature[row]) > 0, drawn, most_probable)


def _weights_(logits: Tensor, temperature: Tensor) -> Tensor:
    """exp(logits / temperature - the row's largest) [B, V] float32, in the place of float32 logits.

    Probabilities but for a factor per row, without another matrix of this size: on a CPU, fresh memory costs more
    than the arithmetic.
    """
    scaled = logits.float().div_(temperature[:, None])
    return scaled.sub_(scaled.amax(-1, keepdim=True)).exp_()


def _inverse_cdf(weights: Tensor, uniform: Tensor, row: Tensor | None = None) -> Tensor:
    """The first token whose share of the cumulative weight exceeds uniform: weights [B, V], uniform [N] -> [N] int64.

    row [N] int64: the row of weights of each draw; without it there is one draw from each row.
    The vocabulary is searched by blocks, then within one, in float64; a block's own sum is float32.
    """
    batch, vocabulary = weights.shape
    padding = -vocabulary % BLOCK
    blocks = (torch.nn.functional.pad(weights, (0, padding)) if padding else weights).view(batch, -1, BLOCK)
    mass = blocks.sum(-1).double()
    ends = mass.cumsum(-1)
    if row is None:
        row = torch.arange(batch, device=weights.device)
    else:
        mass, ends = mass[row], ends[row]
    target = _below(uniform[:, None] * ends[:, -1:], ends[:, -1:])
    block = torch.searchsorted(ends, target, right=True)
    share = ((target - (ends - mass).gather(1, block)) / mass.gather(1, block)).clamp(min=0)
    within = blocks[row, block.squeeze(1)].cumsum(-1, dtype=torch.float64)
    index = torch.searchsorted(within, _below(share * within[:, -1:], within[:, -1:]), right=True)
    return (block * BLOCK + index).squeeze(1)


def _below(x: Tensor, limit: Tensor) -> Tensor:
    """x where it is less than limit, else the number before limit: rounding takes no target past the last weight."""
    return torch.minimum(x, torch.nextafter(limit, torch.zeros_like(limit)))


def group_probabilities(logits: Tensor, groups: list[Tensor] | None, temperature: float, top_p: float) -> Tensor:
    """Mass of each group of token ids under the sampling distribution: logits [B, V] -> [B, G] float64.

    At temperature 0 the mass is 1 for the group that holds the most probable token. groups: None for every token by
    itself, [B, V].
    """
    n = logits.shape[0]
    if temperature == 0:
        p = torch.zeros_like(logits, dtype=torch.float32)
        p.scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    else:
        full = logits.new_full((n,), 1.0, dtype=torch.float32)
        p = distribution(logits, full * temperature, full * top_p, nucleus=top_p < 1)
    if groups is None:
        return p.double()
    return torch.stack([p[:, ids].double().sum(-1) for ids in groups], dim=-1)
