"""Findings in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.outliers.report.ablation import in_words
from tasks.outliers.report.data import Dimension, Effect, Found, ModelReport, Site
from tasks.outliers.spec import FailedModel
from tasks.report import numbers as fmt

PLACES = {"norms": "what enters attention and FFN", "residual": "the residual stream"}


def model_headline(found: Found) -> str:
    """How many dimensions are systematic outliers, of how many."""
    n, d = found.counts.systematic, found.facts.d_model
    if not n:
        return f"None of the {fmt.count(d)} dimensions of {found.name} is a systematic outlier."
    verb = "is a systematic outlier" if n == 1 else "are systematic outliers"
    return f"{fmt.count(n)} of {fmt.count(d)} dimensions of {found.name} {verb}."


def detail(found: Found) -> str:
    """Where they are, how large, and what the model loses without them."""
    return " ".join(part for part in (_where(found), _loss(found), _relative(found), nearest_massive(found)) if part)


def _where(found: Found) -> str:
    counts = found.counts
    if not counts.systematic:
        with_any = found.site.with_outliers[found.variant]
        if not with_any:
            return "No value reaches the threshold."
        ever = f", though {fmt.some(counts.unique, 'is', 'are')} systematic in some sequence" if counts.unique else ""
        some = "1 dimension has" if with_any == 1 else f"{fmt.count(with_any)} dimensions have"
        return f"{some} outliers, at too few points or positions{ever}{_nearest(found)}."
    first, *others = found.site.systematic(found.variant)
    which = "it has" if not others else "they have"
    return (
        f"In a sequence {which} outliers at {fmt.percent(counts.mean_layer_share)} of the watched points and at"
        f" {fmt.percent(counts.mean_position_share)} of the positions on average; the largest value,"
        f" {fmt.magnitude(first.max_magnitude)}, is in dimension {first.dim}."
    )


def _nearest(found: Found) -> str:
    """The dimension that misses the criteria by least."""
    needed = found.criteria
    dims = [d for d in found.site.dimensions[found.variant] if d.occurrences]
    if not dims:
        return ""

    def reached(d: Dimension) -> float:
        return min(d.layer_share / needed.layer_share, d.position_share / needed.position_share)

    best = max(dims, key=lambda d: (reached(d), d.max_magnitude))
    return (
        f"; nearest is dimension {best.dim}, at {fmt.percent(best.layer_share)} of the points and"
        f" {fmt.percent(best.position_share)} of the positions, up to {fmt.magnitude(best.max_magnitude)}"
    )


def _loss(found: Found) -> str:
    """'Setting them to zero multiplies perplexity by 41 (95 % interval 30 to 55), as many random ones by 1.01.'"""
    checked = found.ablation
    zeroed, control = checked.main if checked else (None, None)
    if zeroed is None:
        return ""
    them, random = ("it", "a random one") if zeroed.n_dims == 1 else ("them", "as many random ones")
    if zeroed.condition == "largest":
        them = in_words(zeroed)
    if control and control.n_dims < zeroed.n_dims:
        random = f"all {fmt.count(control.n_dims)} others"
    beside = f", {random} by {fmt.ratio(control.ratio)}" if control and control.ratio is not None else ""
    return f"Setting {them} to zero multiplies perplexity by {_ratio(zeroed)}{beside}."


def _ratio(effect: Effect) -> str:
    interval = fmt.ratios(effect.ratio_low, effect.ratio_high)
    return fmt.ratio(effect.ratio) + ("" if interval == fmt.MISSING else f" (95{fmt.NBSP}% interval {interval})")


def _relative(found: Found) -> str:
    """The scale-free companion in half a sentence, where it says something else."""
    relative, absolute = found.counts.relative_systematic, found.counts.systematic
    if relative == absolute:
        return ""
    are = "is" if relative == 1 else "are"
    return (
        f"Measured against each token’s root mean square, {fmt.count(relative) if relative else 'none'} {are}"
        " systematic."
    )


def nearest_massive(found: Found) -> str:
    """'No activation is massive; nearest is dimension 507, ...' where there is none."""
    nearest = found.nearest_massive
    if nearest is None:
        return ""
    at = "the first position" if nearest.position == 0 else f"position {fmt.count(nearest.position)}"
    times = "" if nearest.ratio is None else f", {fmt.magnitude(nearest.ratio)} times its token’s median magnitude"
    return (
        f"No activation is massive; nearest is dimension {nearest.dim} in {place(nearest.site)} ({nearest.point}),"
        f" which reaches {fmt.magnitude(abs(nearest.value))} at {at} of sequence {fmt.count(nearest.sequence)}{times}."
    )


def sweep_headline(models: Sequence[ModelReport], failures: Sequence[FailedModel]) -> str:
    """The answer of a sweep in one sentence."""
    if not models:
        return "No model could be examined." if failures else "No model was asked for."
    having = [m for m in models if m.counts.systematic]
    if not having:
        return f"None of the {fmt.count(len(models))} models has a systematic outlier dimension."
    if len(models) == 1:
        return models[0].headline
    ordered = sorted(having, key=lambda m: m.counts.systematic / m.facts.d_model)
    few, many = ordered[0], ordered[-1]
    span = f"from {_of(few)} to {_of(many)}" if few is not many else _of(few)
    return (
        f"{fmt.of(len(having), len(models))} models have systematic outlier dimensions: {span}."
        if len(having) < len(models)
        else f"All {fmt.count(len(models))} models have systematic outlier dimensions: {span}."
    )


def _of(model: ModelReport) -> str:
    return f"{fmt.of(model.counts.systematic, model.facts.d_model)} in {model.name}"


def sweep_lead(models: Sequence[ModelReport]) -> str:
    """What zeroing them costs, over the models where that was checked."""
    checked = [m for m in models if m.counts.systematic and m.row.perplexity_ratio is not None]
    if not checked:
        return ""
    most = max(checked, key=lambda m: m.row.perplexity_ratio or 0.0)
    random = [m.row.random_perplexity_ratio for m in checked if m.row.random_perplexity_ratio is not None]
    control = f"; as many random ones by at most {fmt.ratio(max(random))}" if random else ""
    if len(checked) == 1:
        ratio = fmt.ratio(most.row.perplexity_ratio)
        return f"Setting them to zero multiplies the perplexity of {most.name} by {ratio}{control}."
    ratios = fmt.ratios(
        min(m.row.perplexity_ratio or 0.0 for m in checked), max(m.row.perplexity_ratio or 0.0 for m in checked)
    )
    return (
        f"Setting them to zero multiplies perplexity by {ratios} in the {len(checked)} models where that was measured,"
        f" most in {most.name}{control}."
    )


def sweep_findings(models: Sequence[ModelReport]) -> list[str]:
    """One sentence or two for each model."""
    return [f"{m.headline} {m.detail}" for m in models]


def place(site: Site | str) -> str:
    """A site in words."""
    return PLACES[site if isinstance(site, str) else site.site]
