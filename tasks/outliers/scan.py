"""One forward pass of a batch, watched: what it leaves of every point, and of the routers of a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.errors import BadInput
from tasks.models.batching import Batch
from tasks.models.experts import MoeBlock, moe_blocks, routing
from tasks.models.layout import Layout
from tasks.models.load import LoadedModel
from tasks.models.points import Point, norm_points, residual_points, watching
from tasks.outliers.classify import Pairs, pairs, shares
from tasks.outliers.fold import first_of, fold, rest_of
from tasks.outliers.reductions import SiteBuffers, Thresholds
from tasks.outliers.routing import RoutingTally
from tasks.outliers.spec import VARIANTS, Criteria, Site, headline_site
from tasks.outliers.state import SiteState


@dataclass(frozen=True, eq=False)
class SiteResult:
    """What a batch of B sequences leaves of one site."""

    state: SiteState
    systematic: dict[str, np.ndarray]
    """variant -> [B] int64: systematic dimensions"""
    nan: np.ndarray
    inf: np.ndarray
    """[B] int64"""
    pairs: Pairs | None
    """Of the site whose sequences are reported one by one."""


class Scanner:
    """Watches a model."""

    def __init__(self, loaded: LoadedModel, sites: Sequence[Site], criteria: Criteria) -> None:
        self.loaded, self.criteria = loaded, criteria
        self.headline = headline_site(sites)
        self.points: dict[Site, list[Point]] = {site: _points(loaded, site) for site in sites}
        self.blocks, self.unwatched = _moe_blocks(loaded.layout)
        self._thresholds = Thresholds.of(criteria)
        self.begin()

    def begin(self) -> None:
        """Count the routing anew."""
        self.routing = RoutingTally(self.blocks, self.criteria.threshold)

    @torch.no_grad()
    def scan(self, batch: Batch, sequences: Sequence[int]) -> dict[Site, SiteResult]:
        """Run the model on a batch of the sequences of these numbers, ascending; its routing is added to `routing`."""
        real = batch.attention_mask.bool()
        start, length = real.int().argmax(1), real.sum(1)
        device, d = self.loaded.device, self.loaded.layout.d_model
        buffers = {
            site: SiteBuffers(len(points), d, start, length, self._thresholds, device)
            for site, points in self.points.items()
        }
        self._run(batch, buffers, real)
        return {site: self._result(site, buffers[site], length, sequences) for site in buffers}

    def _run(self, batch: Batch, buffers: dict[Site, SiteBuffers], real: Tensor) -> None:
        """The pass itself. Which tokens are no pads is known beforehand, so that nothing waits for a GPU."""
        device = self.loaded.device
        tally = RoutingTally(self.blocks, self.criteria.threshold)
        tokens = real.reshape(-1).nonzero()[:, 0].to(device)
        width = buffers[self.headline].hits.shape[1]
        positions = (torch.arange(width) < real.sum(1, keepdim=True)).reshape(-1).nonzero()[:, 0].to(device)
        entering = torch.zeros(len(tokens), dtype=torch.int32, device=device)

        def watch(site: Site) -> Callable[[int, Tensor], None]:
            points, of_site = self.points[site], buffers[site]

            def see(point: int, x: Tensor) -> None:
                of_site.observe(point, x)
                if self.blocks and points[point].kind in ("mlp", "both"):
                    entering.copy_(of_site.token_hits.reshape(-1)[positions])

            return see

        stack = self.loaded.layout.stack
        with ExitStack() as hooks:
            for site, points in self.points.items():
                hooks.enter_context(watching(points, watch(site)))
            hooks.enter_context(routing(self.blocks, lambda one: tally.observe(one, tokens, entering)))
            stack(**batch.to(device).inputs(stack), use_cache=False)
        self.routing.add(tally)

    def _result(self, site: Site, buffers: SiteBuffers, length: Tensor, sequences: Sequence[int]) -> SiteResult:
        first, rest = first_of(buffers), rest_of(buffers)
        numbers = torch.tensor(sequences, device=buffers.device)
        found = shares(first, rest, buffers.length, self.criteria)
        systematic = torch.stack([found[variant].systematic for variant in VARIANTS])
        n, tokens = len(sequences), int(length.sum())
        state = SiteState(
            first=fold(first, numbers, n, 1),
            rest=fold(rest, numbers, tokens - n, int(length.max())),
            sequences=n,
            recurrence=systematic.sum(1).cpu().numpy(),
            nan=buffers.nan.sum(0, dtype=torch.int64).cpu().numpy(),
            inf=buffers.inf.sum(0, dtype=torch.int64).cpu().numpy(),
        )
        per_sequence = systematic.sum(2).cpu().numpy()
        return SiteResult(
            state=state,
            systematic=dict(zip(VARIANTS, per_sequence, strict=True)),
            nan=buffers.nan.sum(1).cpu().numpy(),
            inf=buffers.inf.sum(1).cpu().numpy(),
            pairs=pairs(first, rest, found, self.criteria.headline) if site == self.headline else None,
        )


def _points(loaded: LoadedModel, site: Site) -> list[Point]:
    return norm_points(loaded.model, loaded.layout) if site == "norms" else residual_points(loaded.layout)


def _moe_blocks(layout: Layout) -> tuple[list[MoeBlock], str]:
    """The mixtures of experts, and why they are not watched if they are not: everything else can be."""
    try:
        return moe_blocks(layout), ""
    except BadInput as error:
        return [], f"routers are not watched: {error.problem}"
