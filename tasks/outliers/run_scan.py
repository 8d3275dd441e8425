"""Task `outliers.scan`: forward passes over some of the sequences, summarized while they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from tasks.context import ShardContext
from tasks.models.batching import pad
from tasks.models.load import LoadedModel, load
from tasks.models.memory import Halving
from tasks.outliers.merge import SiteMerger
from tasks.outliers.scan import Scanner, SiteResult
from tasks.outliers.single_sequences import point_names, sequence_rows, systematic_rows
from tasks.outliers.spec import ScanParams, Site
from tasks.outliers.state import joined
from tasks.outliers.tables import POINT_NAMES, SEQUENCES, SYSTEMATIC

BATCHES_PER_CHUNK = 4

Numbered = tuple[int, list[int]]
"""A sequence's number, and its tokens."""


def run(ctx: ShardContext) -> None:
    """Tensors `state`: one summary a chunk (`SiteState.arrays` by site, and the routing). Tables `systematic` and
    `sequences`, of single sequences; table `points`, what the points are called.

    A batch holds the same sequences whatever the shard, so results do not depend on how the work is cut.
    """
    p: ScanParams = ctx.params
    sequences = _sequences(ctx)
    size = p.batch_size * BATCHES_PER_CHUNK
    scan = _Scan(ctx)
    total = -(-len(sequences) // size)
    for chunk in ctx.chunks(total):
        mine = sequences[chunk.index * size : (chunk.index + 1) * size]
        done = chunk.index * size
        summary = _Summary(scan.scanner)
        for at in range(0, len(mine), p.batch_size):
            batch = mine[at : at + p.batch_size]
            scan.add(batch, summary)
            ctx.progress(done + at + len(batch), len(sequences), "sequences")
        chunk.tensors("state", summary.arrays())
        chunk.table(POINT_NAMES.name, point_names(scan.scanner.points))
        chunk.table(SYSTEMATIC.name, pa.concat_tables(summary.systematic))
        chunk.table(SEQUENCES.name, pa.concat_tables(summary.sequences))
        chunk.count(sequences=len(mine), tokens=sum(len(tokens) for _, tokens in mine))
        chunk.commit()


def _sequences(ctx: ShardContext) -> list[Numbered]:
    p: ScanParams = ctx.params
    table = ctx.input("prepared").table("sequences", ["sequence", "tokens"]).slice(p.start, p.stop - p.start)
    return list(zip(table["sequence"].to_pylist(), table["tokens"].to_pylist(), strict=True))


class _Scan:
    """The model, loaded when the first chunk needs it."""

    def __init__(self, ctx: ShardContext) -> None:
        self._ctx = ctx

    @cached_property
    def scanner(self) -> Scanner:
        ctx, p = self._ctx, self._ctx.params
        ctx.log(f"loading {p.model.source}")
        loaded: LoadedModel = load(p.model, ctx.runtime.device, p.model_fingerprint, offload=True)
        ctx.note("spread", loaded.spread)
        scanner = Scanner(loaded, p.sites, p.criteria)
        if scanner.unwatched:
            ctx.log(scanner.unwatched)
            ctx.note("routing", scanner.unwatched)
        return scanner

    def add(self, batch: Sequence[Numbered], summary: _Summary) -> None:
        """Scan a batch, in parts where memory does not hold it whole. All parts are padded as the whole is."""
        numbers = [number for number, _ in batch]
        padded = pad([tokens for _, tokens in batch], self.scanner.loaded.pad_id, side="right")
        lengths = padded.attention_mask.sum(1).tolist()

        def scan(rows: range) -> Mapping[Site, SiteResult]:
            return self.scanner.scan(padded.rows(slice(rows.start, rows.stop)), numbers[rows.start : rows.stop])

        def say(n: int) -> None:
            self._ctx.note("out_of_memory", f"{n} sequences of {padded.input_ids.shape[1]} tokens, halved")

        for rows, results in Halving(len(batch), say).over(range(len(batch)), scan):
            summary.add(results, numbers[rows.start : rows.stop], lengths[rows.start : rows.stop])


class _Summary:
    """What one chunk leaves."""

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self._states: dict[Site, SiteMerger] = {site: SiteMerger() for site in scanner.points}
        scanner.begin()
        self.systematic: list[pa.Table] = []
        self.sequences: list[pa.Table] = []

    def add(self, results: Mapping[Site, SiteResult], numbers: Sequence[int], lengths: Sequence[int]) -> None:
        variant = self._scanner.criteria.headline
        for site, result in results.items():
            self._states[site].add(result.state)
            self.sequences.append(sequence_rows(site, result, numbers, lengths))
            if result.pairs is not None:
                self.systematic.append(systematic_rows(site, variant, result.pairs, numbers, lengths))

    def arrays(self) -> dict[str, np.ndarray]:
        parts = {site: merger.state().arrays() for site, merger in self._states.items()}
        return joined(parts | {"routing": self._scanner.routing.arrays()})
