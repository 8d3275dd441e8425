"""From the shards of examined models to the content of their report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from tasks.artifacts.shard import Shard
from tasks.outliers.report.ablation import ablation
from tasks.outliers.report.cautions import of_model, of_sweep
from tasks.outliers.report.data import (
    Expert,
    Found,
    Massive,
    ModelFacts,
    ModelReport,
    ModelRow,
    NearestMassive,
    OutliersData,
)
from tasks.outliers.report.sentences import detail, model_headline, sweep_findings, sweep_headline, sweep_lead
from tasks.outliers.report.sites import Limits, sites
from tasks.outliers.spec import Criteria, ExaminedModel, ReportParams
from tasks.outliers.tables import EXPERTS, MASSIVE_ACTIVATIONS
from tasks.report.settings import flat
from tasks.report.sources import sources
from tasks.report.tables import Row, rows

MASSIVE_ROWS = 30


@dataclass(frozen=True)
class Examined:
    """Readers of one model's finished shards."""

    model: ExaminedModel
    prepared: Shard
    summary: Shard
    ablation: Shard | None = None
    scans: Sequence[Shard] = ()
    """What the summary was made from, as far as it is still there: for times and memory alone."""


def stages(models: Sequence[Examined]) -> Iterator[tuple[str, Sequence[Shard]]]:
    """Stages in the order they ran, with their shards; named by model in a sweep."""
    for m in models:
        named = f" · {m.model.name}" if len(models) > 1 else ""
        yield f"prepare{named}", (m.prepared,)
        if m.scans:
            yield f"scan{named}", m.scans
        yield f"summary{named}", (m.summary,)
        if m.ablation:
            yield f"ablation{named}", (m.ablation,)


def collect(models: Sequence[Examined], params: ReportParams) -> OutliersData:
    """Everything the report shows; equal shards give equal data, whatever machine or day they come from."""
    limits = Limits.of(len(models))
    reports = [model_report(m, limits) for m in models]
    failures = params.failures
    alone = reports[0] if len(reports) == 1 and {f.name for f in failures} <= {reports[0].name} else None
    return OutliersData(
        title=params.title,
        headline=alone.headline if alone else sweep_headline(reports, failures),
        lead=alone.detail if alone else sweep_lead(reports),
        findings=[alone.detail] if alone else sweep_findings(reports),
        cautions=of_sweep(reports, failures),
        models=reports,
        failures=failures,
        settings=flat(params.settings),
        sources=sources(stages([replace(m, scans=()) for m in models])),
    )


def model_report(examined: Examined, limits: Limits) -> ModelReport:
    """Everything about one model."""
    study, about = examined.prepared.json("study"), examined.summary.json("summary")
    found = read_model(examined, study, about, limits)
    return ModelReport(
        **dict(found),
        headline=model_headline(found),
        detail=detail(found),
        cautions=of_model(found, list(dict.fromkeys([*study["warnings"], *about["warnings"]]))),
        row=model_row(found),
    )


def read_model(examined: Examined, study: Mapping[str, Any], about: Mapping[str, Any], limits: Limits) -> Found:
    """The tables of one model; `study` is what was prepared, `about` the summary."""
    massive = massive_rows(examined.summary)
    criteria = Criteria.model_validate(about["criteria"])
    return Found(
        name=examined.model.name,
        source=examined.model.source,
        facts=facts(study, about),
        criteria=criteria,
        variant=about["headline"],
        sites=sites(examined.summary, about, limits),
        massive=massive[:MASSIVE_ROWS],
        massive_rows=len(massive),
        massive_dims=len({m.dim for m in massive}),
        nearest_massive=None if massive else nearest_massive(about["nearest_massive"], criteria),
        experts=experts(examined.summary),
        ablation=ablation(examined.ablation) if examined.ablation else None,
    )


def model_row(found: Found) -> ModelRow:
    """The model in numbers."""
    counts, checked = found.counts, found.ablation
    zeroed, random = checked.main if checked else (None, None)
    magnitudes = [p.max_magnitude[found.variant] for p in found.site.points]
    return ModelRow(
        model=found.name,
        parameters=found.facts.parameters,
        active=found.facts.active,
        d_model=found.facts.d_model,
        systematic=counts.systematic,
        per_sequence=counts.mean_per_sequence,
        mean_layer_share=counts.mean_layer_share,
        mean_position_share=counts.mean_position_share,
        largest_magnitude=max((m for m in magnitudes if m is not None), default=None),
        massive=found.massive_dims,
        perplexity_ratio=zeroed.ratio if zeroed else None,
        random_perplexity_ratio=random.ratio if random else None,
    )


def facts(study: Mapping[str, Any], about: Mapping[str, Any]) -> ModelFacts:
    """What was run, from the prepared study and the summary."""
    model, info, text = about["model"], about["model_info"], about["text"]
    source = model["source"] + (f"@{model['revision']}" if model.get("revision") else "")
    return ModelFacts(
        model=source + (f" with adapter {model['adapter']}" if model.get("adapter") else ""),
        fingerprint=study["model_fingerprint"],
        model_type=info["model_type"],
        architecture=info.get("architecture"),
        n_layers=info["n_layers"],
        d_model=info["d_model"],
        dtype=model["dtype"],
        quantization=about["quantization"],
        parameters=about["parameters"],
        active=about["active_parameters"],
        text=text["location"] + ("" if text["pack"] else ", one document a sequence"),
        bos=about["bos"],
        sequences=about["sequences"],
        asked_sequences=text["sequences"],
        tokens=about["tokens"],
        longest=about["longest"],
        documents=study.get("documents"),
        batch_size=about["batch_size"],
        experts=_experts_in_words(about["experts"]),
    )


def _experts_in_words(experts: Mapping[str, Any] | None) -> str | None:
    if not experts:
        return None
    shared = ", and shared ones for every token" if experts["shared"] else ""
    return f"{experts['routed']} in each of {experts['layers']} layers, {experts['per_token']} per token{shared}"


def massive_rows(summary: Shard) -> list[Massive]:
    """Massive activations by site and dimension, largest first."""
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows(MASSIVE_ACTIVATIONS.read(summary)):
        groups[row["site"], row["dim"]].append(row)
    return sorted((_massive(*key, found) for key, found in groups.items()), key=lambda m: (-m.max_magnitude, m.dim))


def _massive(site: str, dim: int, found: Sequence[Row]) -> Massive:
    largest = max(found, key=lambda r: r["max_magnitude"])
    return Massive(
        site=site,
        dim=dim,
        points=len(found),
        first_layer=min(r["layer"] for r in found),
        last_layer=max(r["layer"] for r in found),
        max_magnitude=largest["max_magnitude"],
        point=largest["name"],
        occurrences=sum(r["occurrences"] for r in found),
        at_first_position=sum(r["at_first_position"] for r in found),
    )


def nearest_massive(by_site: Mapping[str, Mapping[str, Any] | None], criteria: Criteria) -> NearestMassive | None:
    """Of all sites, what reaches the largest share of both limits."""
    found = [NearestMassive(site=site, **_without_median(one)) for site, one in by_site.items() if one]

    def reached(one: NearestMassive) -> float:
        of_ratio = inf if one.ratio is None else one.ratio / criteria.massive_ratio
        return min(abs(one.value) / criteria.massive_magnitude, of_ratio)

    return max(found, key=reached, default=None)


def _without_median(one: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if name != "median"}


def experts(summary: Shard) -> list[Expert]:
    """Experts by layer, routed ones in order before the shared ones; empty for a dense model."""
    if EXPERTS.name not in summary:
        return []
    found = [_expert(row) for row in rows(EXPERTS.read(summary))]
    return sorted(found, key=lambda e: (e.layer, e.kind == "shared", e.expert))


def _expert(r: Row) -> Expert:
    return Expert(
        layer=r["layer"],
        expert=r["expert"],
        kind=r["kind"],
        tokens=r["tokens"],
        share=r["share"],
        expected_share=r["expected_share"],
        mean_weight=r["mean_weight"],
        rate_in=r["outlier_rate_in"],
        rate_out=r["outlier_rate_out"],
        with_outlier_in=r["tokens_with_outlier_in"],
        with_outlier_out=r["tokens_with_outlier_out"],
    )
