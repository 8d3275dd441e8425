"""What a mixture-of-experts model's routers choose, and how often outliers go with each expert.

Of each expert: the tokens sent to it, the sum of their gate weights, and how many of these tokens have an absolute hit
in the vector that enters the FFN, and in what the routed experts together write. A shared expert sees every token; its
hits are in what it writes itself. Everything is an integer, weights in units of 2^-24, so sums are exact in any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tasks.models.experts import MoeBlock, Routing
from tasks.outliers.tables import EXPERTS

FIELDS = ("tokens", "weight", "tokens_with_outlier_in", "outliers_in", "tokens_with_outlier_out", "outliers_out")
WEIGHT_UNIT = 2**24
SHARED = -1
"""Number of the shared experts of a layer, which are counted as one."""


class RoutingTally:
    """Counts [layer, expert, FIELDS] int64 of one or more batches; the last expert is the shared one."""

    def __init__(self, blocks: Sequence[MoeBlock], threshold: float) -> None:
        self.layers = [block.layer for block in blocks]
        self.n_experts = [block.n_experts for block in blocks]
        self.per_token = 0
        """Experts of each token; 0 until one was seen."""
        self._row = {layer: row for row, layer in enumerate(self.layers)}
        self._threshold = threshold
        experts = max((block.n_experts for block in blocks), default=0)
        self._shape = (len(blocks), experts + 1, len(FIELDS))
        self._counts: dict[torch.device, Tensor] = {}

    def observe(self, routing: Routing, real: Tensor, hits_in: Tensor) -> None:
        """Count one layer's routing. real: [n] int64, which of its tokens are no pads; hits_in: [n] int32."""
        device = routing.experts.device
        real, hits_in = real.to(device), hits_in.to(device)
        experts, weights = routing.experts[real], routing.weights[real]
        k = self.per_token = experts.shape[1]
        counts = self._counts.setdefault(device, torch.zeros(self._shape, dtype=torch.int64, device=device))
        mine = counts[self._row[routing.layer]]
        fields = _per_token(hits_in, self._hits(routing.routed_output[real]))
        fields = fields[:, None].expand(-1, k, -1).clone()
        fields[..., 1] = (weights.double() * WEIGHT_UNIT).round().long()
        mine.index_add_(0, experts.reshape(-1), fields.reshape(-1, len(FIELDS)))
        if routing.shared_output is not None:
            mine[-1] += _per_token(hits_in, self._hits(routing.shared_output[real])).sum(0)

    def _hits(self, x: Tensor) -> Tensor:
        """[n] int64: absolute hits in each vector of x [n, d]."""
        return ((x.abs().float() >= self._threshold) & torch.isfinite(x)).sum(1)

    def add(self, other: RoutingTally) -> None:
        """Add the counts of a pass that went through."""
        self.per_token = other.per_token
        for device, counts in other._counts.items():
            self._counts[device] = self._counts[device] + counts if device in self._counts else counts

    def counts(self) -> np.ndarray:
        return sum((one.cpu() for one in self._counts.values()), torch.zeros(self._shape, dtype=torch.int64)).numpy()

    def arrays(self) -> dict[str, np.ndarray]:
        """`layers` and `n_experts` [L], `per_token` [1], `counts` [L, experts + 1, FIELDS]; all int64."""
        lists = {"layers": self.layers, "n_experts": self.n_experts, "per_token": [self.per_token]}
        return {name: np.array(values, np.int64) for name, values in lists.items()} | {"counts": self.counts()}


def _per_token(hits_in: Tensor, hits_out: Tensor) -> Tensor:
    """[n, FIELDS] int64, without weights."""
    one = torch.ones_like(hits_out)
    fields = [one, 0 * one, hits_in > 0, hits_in, hits_out > 0, hits_out]
    return torch.stack([field.long() for field in fields], dim=1)


def experts_table(
    layers: Sequence[int], n_experts: Sequence[int], per_token: int, counts: np.ndarray, entering: bool
) -> pa.Table:
    """Table `experts`. counts: [layer, expert, FIELDS], the shared expert last; per_token: experts of each token.

    entering: what enters the FFN was watched; its columns are null otherwise.
    """
    rows = []
    for layer, n, of_layer in zip(layers, n_experts, counts, strict=True):
        tokens = int(of_layer[:n, 0].sum()) // per_token
        rows += [_row(layer, i, "routed", of_layer[i], tokens, per_token / n) for i in range(n)]
        if of_layer[-1, 0]:
            rows.append(_row(layer, SHARED, "shared", of_layer[-1], tokens, 1.0))
    if not entering:
        rows = [row | dict.fromkeys(_ENTERING) for row in rows]
    return EXPERTS.from_rows(rows)


def _row(layer: int, expert: int, kind: str, fields: np.ndarray, tokens: int, expected: float) -> dict:
    found = dict(zip(FIELDS, map(int, fields), strict=True))
    sent, weight = found["tokens"], found.pop("weight")
    return {
        "layer": layer,
        "expert": expert,
        "kind": kind,
        **found,
        "share": sent / tokens if tokens else 0.0,
        "expected_share": expected,
        "mean_weight": weight / WEIGHT_UNIT / sent if sent and kind == "routed" else None,
        "outlier_rate_in": found["tokens_with_outlier_in"] / sent if sent else None,
        "outlier_rate_out": found["tokens_with_outlier_out"] / sent if sent else None,
    }


_ENTERING = ("tokens_with_outlier_in", "outliers_in", "outlier_rate_in")
