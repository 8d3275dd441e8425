"""A report on systematic outliers in short."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.outliers.report.collect import Examined
from tasks.outliers.report.data import ModelRow, OutliersData
from tasks.outliers.results_layout import RESULTS
from tasks.report import numbers as fmt
from tasks.report.records import Caution
from tasks.report.summary import Failure, ResultFile, Summary, SummaryTable


def summarize(data: OutliersData, models: Sequence[Examined]) -> Summary:
    """`models` are those of `data`; the file of results of each lies in a folder of its own."""
    return Summary(
        headline=data.headline,
        findings=data.findings,
        cautions=cautions(data),
        failures=[Failure(name=f.name, stage=f.stage, reason=f.reason) for f in data.failures],
        table=SummaryTable(key="outliers-models", rows=[table_row(model.row) for model in data.models]),
        files=[
            ResultFile(path=f"{examined.model.folder}/{RESULTS}", shard=examined.summary.path, output=RESULTS)
            for examined in models
        ],
    )


def cautions(data: OutliersData) -> list[Caution]:
    """All of them; those of a sweep's models begin with the model's name."""
    every = [*data.cautions]
    for model in data.models:
        named = f"{model.name}: " if len(data.models) > 1 else ""
        every += [caution.model_copy(update={"text": named + caution.text}) for caution in model.cautions]
    return every


def table_row(row: ModelRow) -> dict[str, str]:
    """A model's numbers in words."""
    active = f", {fmt.scaled(row.active)} active" if row.active not in (None, row.parameters) else ""
    return {
        "model": row.model,
        "parameters": fmt.scaled(row.parameters) + active,
        "systematic dimensions": fmt.of(row.systematic, row.d_model),
        "per sequence": fmt.decimal(row.per_sequence),
        "share of points": fmt.percent(row.mean_layer_share),
        "share of positions": fmt.percent(row.mean_position_share),
        "largest magnitude": fmt.magnitude(row.largest_magnitude),
        "with massive activations": fmt.count(row.massive),
        "perplexity ratio with them (or the largest) at zero": fmt.ratio(row.perplexity_ratio),
        "with random ones at zero": fmt.ratio(row.random_perplexity_ratio),
    }
