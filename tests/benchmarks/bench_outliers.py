"""What watching for outliers costs: beside the bare forward pass, and beside a list of every occurrence.

On a GPU an 8B-shaped random model is watched too. Without one the same steps run on a small shape on the CPU, which
shows that they run and nothing about their speed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import torch

from tasks.models.batching import Batch, pad
from tasks.models.load import load
from tasks.models.points import watching
from tasks.models.spec import ModelRef
from tasks.outliers.classify import pairs, shares
from tasks.outliers.fold import first_of, fold, rest_of
from tasks.outliers.merge import SiteMerger
from tasks.outliers.reductions import SiteBuffers, Thresholds
from tasks.outliers.scan import Scanner
from tasks.outliers.spec import SITES, Criteria, Site
from tasks.outliers.state import SiteState
from tasks.text.prose import library_prose
from tests.benchmarks.bench_gpu import LLAMA_3_1_8B, SMALL, random_llama
from tests.benchmarks.rows import row
from tests.benchmarks.workload import alternating
from tests.outliers.old_layout import find_outliers, systematic_outliers

LENGTH, BATCH, ROUNDS = 512, 8, 9
FEW, MANY = 2, 20
"""Batches whose summaries are compared in size."""
STATES = 10_000
DISTINCT = 32


def run() -> list[dict[str, Any]]:
    loaded = load(ModelRef(dtype="bfloat16"))
    ids = loaded.tokenizer("\n\n".join(library_prose()), add_special_tokens=False)["input_ids"]
    batches = [pad([ids[at : at + LENGTH] for at in _starts(number)], 0, side="right") for number in range(MANY)]
    scanner = Scanner(loaded, SITES, Criteria())
    rows = [_overhead(scanner, batches[0], "SmolLM2, 512 tokens", 0.05), _against_occurrences(scanner, ids)]
    rows += _summaries(scanner, batches)
    return [*rows, _large()]


def _starts(number: int) -> Iterator[int]:
    return ((number * BATCH + row) * LENGTH for row in range(BATCH))


@torch.no_grad()
def _bare(loaded: Any, batch: Batch) -> None:
    loaded.layout.stack(**batch.inputs(loaded.layout.stack), use_cache=False)


def _seconds(action, device: torch.device) -> float:
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _overhead(scanner: Scanner, batch: Batch, what: str, target: float, judged: bool = True) -> dict[str, Any]:
    """Of a pass with every point watched and the batch's state made, over a bare pass: the median round."""
    loaded, device = scanner.loaded, scanner.loaded.device
    bare, watched = (
        partial(_seconds, partial(_bare, loaded, batch), device),
        partial(_seconds, partial(scanner.scan, batch, range(len(batch.input_ids))), device),
    )
    alternating(1, bare, watched)  # compiles
    plain, with_points = alternating(ROUNDS, bare, watched)
    added = median(b / a - 1 for a, b in zip(plain, with_points, strict=True))
    tokens = batch.input_ids.numel() / median(with_points)
    name = f"outliers: time added to the forward pass ({what}), all points watched"
    return row(name, added, "share", at_most=target, note=f"{tokens:,.0f} tokens/s watched", judged=judged)


def _against_occurrences(scanner: Scanner, ids: list[int]) -> dict[str, Any]:
    """One sequence's activations at all points: one dictionary an occurrence, or reductions."""
    batch = pad([ids[:LENGTH]], 0, side="right")
    captured: dict[Site, list[torch.Tensor]] = {site: [] for site in SITES}
    for site in SITES:
        with watching(scanner.points[site], lambda i, x, site=site: captured[site].append(x.clone())):
            _bare(scanner.loaded, batch)
    names = {site: [point.name for point in scanner.points[site]] for site in SITES}

    def one_by_one() -> None:
        for site in SITES:
            info = find_outliers(dict(zip(names[site], captured[site], strict=True)))
            systematic_outliers(info)

    def reduced() -> None:
        for site in SITES:
            _reduce(captured[site], scanner.criteria)

    reduced()
    cpu = torch.device("cpu")
    slow, fast = alternating(
        2, partial(_seconds, one_by_one, cpu), lambda: min(_seconds(reduced, cpu) for _ in range(5))
    )
    return row(
        "outliers: against a list of every occurrence, same activations", min(slow) / min(fast), "x", at_least=100
    )


def _reduce(points: list[torch.Tensor], criteria: Criteria) -> None:
    start, length = torch.zeros(1, dtype=torch.int64), torch.tensor([points[0].shape[1]])
    buffers = SiteBuffers(len(points), points[0].shape[2], start, length, Thresholds.of(criteria), torch.device("cpu"))
    for i, x in enumerate(points):
        buffers.observe(i, x)
    first, rest = first_of(buffers), rest_of(buffers)
    found = shares(first, rest, length, criteria)
    pairs(first, rest, found, criteria.headline)
    for part, width in ((first, 1), (rest, int(length))):
        fold(part, torch.tensor([0]), width, width)


def _summaries(scanner: Scanner, batches: list[Batch]) -> list[dict[str, Any]]:
    """How large a summary is after few and after many sequences, and how long merging takes."""
    states: list[dict[Site, SiteState]] = []
    for number, batch in enumerate(batches):
        found = scanner.scan(batch, range(number * BATCH, (number + 1) * BATCH))
        states.append({site: result.state for site, result in found.items()})
    few, many = (sum(_bytes(_merged(states[:n], site)) for site in SITES) for n in (FEW, MANY))
    merging, largest = 0.0, max(sum(_bytes(one[site]) for site in SITES) for one in states)
    mergers = {site: SiteMerger() for site in SITES}
    for number in range(STATES):
        later = {site: _later(state, number // MANY * MANY * BATCH) for site, state in states[number % MANY].items()}
        started = time.perf_counter()
        for site, merger in mergers.items():
            merger.add(later[site])
        merging += time.perf_counter() - started
    note = f"{largest / 1e6:.2f} MB a state: 90 points, 576 dimensions, {BATCH} sequences of {LENGTH} tokens"
    return [
        row(
            f"outliers: size of the summary of {MANY * BATCH} sequences, of {FEW * BATCH} sequences",
            many / few,
            "x",
            at_most=1.25,
            note=f"{many / 1e6:.2f} MB; more dimensions have had an outlier",
        ),
        row(f"outliers: merging {STATES:,} states", merging, "s", at_most=10, note=note),
    ]


def _merged(states: list[dict[Site, SiteState]], site: Site) -> SiteState:
    merger = SiteMerger()
    for state in states:
        merger.add(state[site])
    return merger.state()


def _bytes(state: SiteState) -> int:
    return sum(array.nbytes for array in state.arrays().values())


def _later(state: SiteState, offset: int) -> SiteState:
    """The same hits in sequences of other numbers."""

    def moved(examples):
        there = examples.point != examples.point.dtype.type(2**31 - 1)
        return dataclasses.replace(examples, sequence=examples.sequence + (offset * there).astype("int32"))

    parts = {
        name: dataclasses.replace(part, largest=moved(part.largest), first=moved(part.first))
        for name, part in (("first", state.first), ("rest", state.rest))
    }
    return dataclasses.replace(state, **parts)


def _large() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    device, size, length = (torch.device("cuda"), LLAMA_3_1_8B, 2048) if cuda else (torch.device("cpu"), SMALL, 64)
    loaded = random_llama(size, device)
    loaded.device = device
    ids = torch.randint(size.vocabulary, (BATCH, length), generator=torch.Generator().manual_seed(0)).tolist()
    scanner = Scanner(loaded, SITES, Criteria())
    what = "8B-shaped, 2,048 tokens, on a GPU" if cuda else "a small shape on the CPU: no target is judged"
    return _overhead(scanner, pad(ids, 0, side="right").to(device), what, 0.03, judged=cuda)
