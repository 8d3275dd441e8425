"""What a finished study leaves: its report and result files in the store, artifacts in the UI, and its outcome."""

from __future__ import annotations

import asyncio

from prefect.artifacts import acreate_link_artifact, acreate_markdown_artifact, acreate_table_artifact
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from flows.reports import browsable
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.report.summary import Summary

REPORT = "report.html"


class Outcome(BaseModel):
    """The result of a flow: what was found, strongest first, what failed, and the path or URL of the report."""

    headline: str
    findings: list[str]
    failures: list[str] = []
    report: str

    def print(self, console: Console) -> None:
        console.print()
        console.print(Text(self.headline, "bold"))
        for number, sentence in enumerate(self.findings, start=1):
            console.print(Text(f"{number}. {sentence}"))
        for failure in self.failures:
            console.print(Text(f"failed: {failure}", "yellow"))
        console.print()
        console.print(Text("report: ").append(self.report, "cyan"), soft_wrap=True)


async def publish(page: Shard, store: Store, study: str, flow: str) -> Outcome:
    """Copy the page and its result files to ``reports/<study>-<hash>/`` and show what was found in Prefect.

    Args:
        page: The shard of the report.
        store: Where the study's shards are.
        study: What the study is called, as part of a path.
        flow: What the flow is called; artifacts are named after it.
    """
    summary = Summary.model_validate(await asyncio.to_thread(page.json, "summary"))
    folder = f"reports/{study}-{page.manifest.spec_hash[:8]}"
    results = [
        await asyncio.to_thread(_copy, Shard(store, file.shard), file.output, store, f"{folder}/{file.path}")
        for file in summary.files
    ]
    report = await asyncio.to_thread(_copy, page, REPORT, store, f"{folder}/{REPORT}")
    link = browsable(report)
    await acreate_table_artifact(summary.table.rows, key=summary.table.key, description=summary.headline)
    text = markdown(summary, report, results, link)
    await acreate_markdown_artifact(text, key=f"{flow}-summary", description="In words")
    if link:
        await acreate_link_artifact(link, "Open the report", key=f"{flow}-report", description="With figures")
    failures = [str(failure) for failure in summary.failures]
    return Outcome(headline=summary.headline, findings=summary.findings, failures=failures, report=report)


def _copy(shard: Shard, output: str, store: Store, path: str) -> str:
    """Copy a file of a shard and return where it is."""
    store.ensure_bytes(path, shard.file(output))
    return store.url_of(path)


def markdown(summary: Summary, report: str, results: list[str], link: str | None) -> str:
    """The summary as the UI shows it. ``results`` are the places of the result files, ``link`` opens the report."""
    lines = [f"# {summary.headline}", ""]
    lines += [f"{number}. {sentence}" for number, sentence in enumerate(summary.findings, start=1)]
    if summary.failures:
        lines += ["", "## Failed", ""]
        lines += [f"- **{failure.name}** ({failure.stage}): {failure.reason}" for failure in summary.failures]
    lines += ["", *(f"> **{caution.severity}:** {caution.text}\n" for caution in summary.cautions)]
    lines += ["", f"Report: [{report}]({link})" if link else f"Report: `{report}`"]
    if results:
        lines += ["", *(f"- results: `{path}`" for path in results)]
    return "\n".join(lines)
