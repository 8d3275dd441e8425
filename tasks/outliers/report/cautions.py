"""What weakens the conclusions on a model or a sweep, found in the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from tasks.outliers.report.ablation import in_words
from tasks.outliers.report.data import Found, ModelReport
from tasks.outliers.report.facts import plain
from tasks.outliers.report.sentences import place
from tasks.outliers.spec import FailedModel
from tasks.report import numbers as fmt
from tasks.report.records import Caution, note, warning

MIN_SEQUENCES = 8
MAX_SHARE_OF_DIMENSIONS = 0.2
MANY_POINTS = 16
SATURATED = 0.9
MAX_AT_FIRST = 0.5
MAX_INTERVAL_RATIO = 2.0
MAX_RANDOM_RATIO = 1.1


def of_model(found: Found, warnings: Sequence[str]) -> list[Caution]:
    """All that apply to one model, warnings first. `warnings` are what the run itself said."""
    every = [
        *_numbers(found),
        *_threshold(found),
        *_union(found),
        *_first_position(found),
        *_sequences(found, warnings),
        *_ablation(found),
        *(note("run", text) for text in warnings),
    ]
    return sorted(every, key=lambda c: c.severity != "warning")


def of_sweep(models: Sequence[ModelReport], failures: Sequence[FailedModel]) -> list[Caution]:
    """What concerns the comparison of models."""
    every: list[Caution] = []
    there = {m.name for m in models}
    missing = [f.name for f in failures if f.name not in there]
    unfinished = [f.name for f in failures if f.name in there]
    if missing:
        total = len(models) + len(missing)
        text = f"{fmt.of(len(missing), total)} models failed and are missing: {fmt.listed(missing)}."
        every.append(warning("failures", text))
    if unfinished:
        every.append(warning("unfinished", f"A later stage failed for {fmt.listed(unfinished)}: see below."))
    sites = {m.site.site for m in models}
    if len(sites) > 1:
        every.append(
            warning("sites-differ", "The models were watched at different sites: their numbers differ for that alone.")
        )
    if len(models) > 1 and len({m.facts.dtype for m in models}) > 1:
        every.append(
            note(
                "precision-differs",
                "The models ran in different precisions; values near the threshold may fall either way.",
            )
        )
    return every


def _numbers(found: Found) -> Iterable[Caution]:
    broken = [
        f"{fmt.count(site.nan)} NaN and {fmt.count(site.inf)} infinite ones in {place(site)}"
        for site in found.sites
        if site.nan or site.inf
    ]
    if broken:
        yield warning(
            "not-finite",
            f"Not all values are finite: {', '.join(broken)}. They are counted, never as outliers; what the model"
            " computes from them is unreliable.",
        )


def _threshold(found: Found) -> Iterable[Caution]:
    share = found.counts.systematic / found.facts.d_model
    if share > MAX_SHARE_OF_DIMENSIONS:
        relative = found.counts.relative_systematic
        yield warning(
            "threshold-says-little",
            f"{fmt.percent(share)} of the dimensions pass, so the fixed threshold of"
            f" {plain(found.criteria.threshold)} sets nothing apart here. It was calibrated for LayerNorm"
            " models, whose other values stay within ±3.5; an RMSNorm’s learned gain scales whole dimensions. Read the"
            f" scale-free companion instead: {fmt.count(relative) if relative else 'none'} of"
            f" {fmt.count(found.facts.d_model)} {'is' if relative == 1 else 'are'} systematic against the token’s root"
            " mean square.",
        )


def _union(found: Found) -> Iterable[Caution]:
    points, needed = len(found.site.points), found.criteria.position_share
    dims = found.site.systematic(found.variant)
    by_union = [d for d in dims if d.mean_point_share < needed]
    if points < MANY_POINTS or not dims:
        return
    if by_union:
        yield note(
            "union-saturates",
            f"{fmt.of(len(by_union), len(dims))} systematic dimensions reach {fmt.percent(needed)} of the positions"
            f" only because a position counts when any of {points} points has an outlier there. At the points where"
            f" they have any, they have outliers at fewer than {fmt.percent(needed)} of the positions on average.",
        )
        return
    union, one = (median(getattr(d, name) for d in dims) for name in ("position_share", "mean_point_share"))
    if union > SATURATED and one < union / 2:
        yield note(
            "union-saturates",
            f"Share of positions: the median systematic dimension has outliers at {fmt.percent(union)} of them when all"
            f" {points} points count together, and at {fmt.percent(one)} at one point. The union says little where"
            " there are many points.",
        )


def _first_position(found: Found) -> Iterable[Caution]:
    both = found.site.counts["all"].occurrences
    rest = found.site.counts["without_first"].occurrences
    if both and (both - rest) / both > MAX_AT_FIRST:
        yield note(
            "first-position",
            f"{fmt.percent((both - rest) / both)} of all outliers are at the first position of their sequence.",
        )
    with_first, without = ({d.dim for d in found.site.systematic(v)} for v in ("all", "without_first"))
    if with_first != without:
        yield note(
            "without-first",
            "Results differ without the first position:"
            f" {fmt.some(len(without), 'dimension is', 'dimensions are')} systematic then, {len(with_first)} with it"
            f" ({_changes(with_first, without)}).",
        )


def _changes(with_first: set[int], without: set[int]) -> str:
    lost, gained = sorted(with_first - without), sorted(without - with_first)
    parts = [f"only with it: {fmt.listed([str(d) for d in lost])}"] if lost else []
    return "; ".join([*parts, *([f"only without it: {fmt.listed([str(d) for d in gained])}"] if gained else [])])


def _sequences(found: Found, warnings: Sequence[str]) -> Iterable[Caution]:
    facts = found.facts
    if facts.sequences < facts.asked_sequences and not warnings:
        yield warning(
            "fewer-sequences",
            f"The text gave {fmt.some(facts.sequences, 'sequence', 'sequences')} of the"
            f" {fmt.count(facts.asked_sequences)} asked for.",
        )
    if facts.sequences < MIN_SEQUENCES:
        yield note(
            "few-sequences",
            f"Only {fmt.some(facts.sequences, 'sequence was', 'sequences were')} read: how often a dimension recurs is"
            " hardly known.",
        )
    if not facts.bos:
        yield note(
            "no-bos",
            "The sequences do not begin with a BOS token, which is where many models keep their massive activations.",
        )


def _ablation(found: Found) -> Iterable[Caution]:
    if found.ablation is None:
        if found.site.with_outliers[found.variant]:
            yield note("no-ablation", "No functional check was run: it is not known what the dimensions do.")
        return
    wide = [
        in_words(e)
        for e in found.ablation.effects
        if e.ratio_low is not None and e.ratio_high is not None and e.ratio_high > MAX_INTERVAL_RATIO * e.ratio_low
    ]
    if wide:
        yield note(
            "wide-intervals",
            f"The functional check’s intervals are wide, their ends a factor of more than {MAX_INTERVAL_RATIO:g} apart"
            f" ({fmt.listed(wide)}): it ran on {fmt.some(found.ablation.sequences, 'sequence', 'sequences')}.",
        )
    random = [e for e in found.ablation.effects if e.condition.startswith("random")]
    if any(e.ratio_low is not None and e.ratio_low > MAX_RANDOM_RATIO for e in random):
        yield warning(
            "random-hurts",
            "Zeroing random dimensions hurts the model too: so many dimensions are no small change, whichever they"
            " are.",
        )
