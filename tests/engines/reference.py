"""What the naive loop says about a trial, and where another engine's rounding may legitimately decide otherwise.

Two correct engines differ in the last bits of their logits. That changes a sampled token only when the trial's
uniform lies within rounding of a boundary between two tokens. Then the other engine's token is accepted, counted, and
the naive loop follows it, so that all later tokens are still compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from tasks.engines.bank import Bank
from tasks.engines.interface import Trial
from tasks.models.layout import Layout
from tasks.sae.sae import SAE, TopK
from tests.engines import naive

BOUNDARY = 1e-5
"""How far a uniform may lie from a boundary of the distribution (and greedy logits from each other, relatively)."""
GATE = 1e-4
"""How far a pre-activation may lie from its gate's threshold for the feature to count as either on or off."""


@dataclass(frozen=True)
class Expected:
    """The naive loop's run of one trial."""

    tokens: tuple[int, ...]
    logits: list[torch.Tensor]
    """One [V] per token."""
    stream: dict[int, torch.Tensor]
    """layer -> [positions read, d]: the stream after the edit."""
    f_before: tuple[float, ...]
    """Empty without an edit; two values where the gate is within rounding of its threshold."""
    relative_delta: tuple[float, ...]
    """Empty without an edit."""


class Reference:
    """The naive loop over one model, each trial computed once."""

    def __init__(self, model, layout: Layout, bank: Bank, saes: Mapping[int, SAE]):
        self.model, self.layout, self.bank, self.saes = model, layout, bank, saes
        self._known: dict[tuple, Expected] = {}
        self._plain: dict[tuple[int, ...], dict[int, torch.Tensor]] = {}

    def run(self, trial: Trial, end_tokens: frozenset[int], forced: tuple[int, ...] = ()) -> Expected:
        key = (replace(trial, id=0), end_tokens, forced)
        if key not in self._known:
            self._known[key] = self._run(trial, end_tokens, forced)
        return self._known[key]

    def follow(self, trial: Trial, end_tokens: frozenset[int], tokens: tuple[int, ...]) -> tuple[Expected, int]:
        """The naive run along another engine's tokens, and how many of those were accepted at a boundary.

        The run's tokens differ from `tokens` when one of them is wrong.
        """
        expected, accepted = self.run(trial, end_tokens), 0
        while expected.tokens != tokens:
            pairs = zip(expected.tokens, tokens, strict=False)
            step = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
            if step is None or not may_follow(expected.logits[step], trial, step, tokens[step]):
                break
            accepted += 1
            expected = self.run(trial, end_tokens, tokens[: step + 1])
        return expected, accepted

    def activations(self, row: int, h: torch.Tensor) -> tuple[float, ...]:
        """Of a bank row's feature at h [d]: the activation, and the gate's other answer where it is a close call."""
        feature, sae = int(self.bank.feature[row]), self.saes[int(self.bank.layer[row])]
        pre = sae.pre_activations(h)
        f = float(sae.gate(pre)[feature])
        if isinstance(sae.gate, TopK):
            others = torch.cat([pre[:feature], pre[feature + 1 :]]).relu()
            threshold = float(others.topk(sae.gate.k).values[-1])
        else:
            threshold = float(sae.gate.theta[feature])
        mine = float(pre[feature])
        return (f,) if abs(mine - threshold) > GATE * max(1.0, abs(mine)) else (0.0, mine)

    def _run(self, trial: Trial, end_tokens: frozenset[int], forced: tuple[int, ...]) -> Expected:
        run = naive.steps(self.model, self.layout, trial, self.bank, self.saes, end_tokens, forced)
        tokens, logits, streams = zip(*run, strict=True)
        if trial.edit is None:
            return Expected(tokens, list(logits), streams[-1], (), ())
        # The edit changes nothing that its own layer reads, so the stream before it is that of the plain model.
        layer, last = int(self.bank.layer[trial.edit.row]), len(trial.prompt) - 1
        before = self._plain_stream(trial.prompt)[layer][last]
        change = (streams[0][layer][last] - before).norm() / before.norm()
        f_before = self.activations(trial.edit.row, before)
        return Expected(tokens, list(logits), streams[-1], f_before, (float(change),))

    def _plain_stream(self, prompt: tuple[int, ...]) -> dict[int, torch.Tensor]:
        if prompt not in self._plain:
            ids = list(prompt)
            self._plain[prompt] = naive.forward(self.model, self.layout, ids, len(ids), None, self.bank, self.saes)[1]
        return self._plain[prompt]


def may_follow(logits: torch.Tensor, trial: Trial, step: int, token: int) -> bool:
    """Whether rounding alone can make `token` the choice at these logits [V].

    A nucleus whose mass reaches top_p within rounding may hold one token more or less.
    """
    if trial.temperature == 0:
        best = float(logits.max())
        return best - float(logits[token]) <= BOUNDARY * max(1.0, abs(best))
    uniform = np.random.Generator(np.random.Philox(key=trial.seed)).random(trial.max_new_tokens)[step]
    near = (0.0,) if trial.top_p == 1 else (-BOUNDARY, 0.0, BOUNDARY)
    for shift in near:
        p = naive.probabilities(logits, trial.temperature, min(1.0, trial.top_p + shift))
        end = p[: token + 1].sum()
        if p[token] > 0 and end - p[token] - BOUNDARY <= uniform <= end + BOUNDARY:
            return True
    return False
