"""What a finished outlier study leaves: its report and result files in the store, and artifacts in the Prefect UI."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prefect.artifacts import acreate_link_artifact, acreate_markdown_artifact, acreate_table_artifact

from flows.outliers_plan import Examined, Failure
from flows.reports import Outcome, browsable
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.report import numbers as fmt
from tasks.report.outliers.data import Summary, SummaryRow

REPORT = "report.html"
RESULTS = "final_analysis_results.json"


async def publish(
    page: Shard, store: Store, study: str, examined: Sequence[Examined], failures: Sequence[Failure]
) -> Outcome:
    """Copy the report and each model's results to ``reports/<study>-<hash>/`` and show the numbers in Prefect."""
    summary = Summary.model_validate(page.json("summary"))
    folder = f"reports/{study}-{page.manifest.spec_hash[:8]}"
    results = [await asyncio.to_thread(_copy_results, store, folder, one) for one in examined]
    await asyncio.to_thread(store.ensure_bytes, f"{folder}/{REPORT}", page.file(REPORT))
    outcome = Outcome(
        headline=summary.headline,
        findings=summary.findings,
        failures=[str(failure) for failure in failures],
        report=store.url_of(f"{folder}/{REPORT}"),
    )
    link = browsable(outcome.report)
    table = [_row(row) for row in summary.rows]
    await acreate_table_artifact(table, key="outliers-models", description=summary.headline)
    markdown = _markdown(summary, outcome, failures, results, link)
    await acreate_markdown_artifact(markdown, key="outliers-summary", description="In words")
    if link:
        await acreate_link_artifact(link, "Open the report", key="outliers-report", description="With figures")
    return outcome


def _copy_results(store: Store, folder: str, one: Examined) -> str:
    """Copy a model's result file and return where it is."""
    path = f"{folder}/{one.examination.folder}/{RESULTS}"
    store.ensure_bytes(path, Shard(store, one.summary.spec.path).file(RESULTS))
    return store.url_of(path)


def _row(row: SummaryRow) -> dict[str, str]:
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


def _markdown(
    summary: Summary, outcome: Outcome, failures: Sequence[Failure], results: Sequence[str], link: str | None
) -> str:
    lines = [f"# {summary.headline}", ""]
    lines += [f"{number}. {sentence}" for number, sentence in enumerate(outcome.findings, start=1)]
    if failures:
        lines += ["", "## Failed", ""]
        lines += [f"- **{one.examination.name}** ({one.stage}): {one.reason}" for one in failures]
    lines += ["", *(f"> **{caution.severity}:** {caution.text}\n" for caution in summary.cautions)]
    lines += ["", f"Report: [{outcome.report}]({link})" if link else f"Report: `{outcome.report}`", ""]
    lines += [f"- results: `{path}`" for path in results]
    return "\n".join(lines)
