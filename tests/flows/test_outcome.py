"""What a finished study leaves in the store and in the UI."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run

from flows.outcome import Outcome, markdown, publish
from tasks.artifacts.manifest import Manifest, write_manifest
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.artifacts.writer import ShardWriter
from tasks.report.records import note, warning
from tasks.report.summary import Failure, ResultFile, Summary, SummaryTable
from tasks.spec import TaskSpec

SUMMARY = Summary(
    headline="Two things were found.",
    findings=["The first is large.", "The second is small."],
    cautions=[warning("few", "Few were asked."), note("slow", "It took long.")],
    table=SummaryTable(key="toys-found", rows=[{"toy": "ball", "size": "3"}]),
)


def finished(store: Store, task: str, **outputs: bytes | Summary) -> Shard:
    """A shard with these outputs."""
    spec = TaskSpec(task=task, version=1, params={})
    writer = ShardWriter(store.at(spec.path))
    for name, content in outputs.items():
        if isinstance(content, Summary):
            writer.json(name, content.model_dump(mode="json"))
        else:
            writer.file(name.replace("_", "."), content)
    write_manifest(store, Manifest.of(spec, writer.outputs, writer.counts, {}))
    return Shard(store, spec.path)


def test_markdown_numbers_the_findings_and_names_the_cautions_and_the_report() -> None:
    assert markdown(SUMMARY, "s3://bucket/report.html", [], None) == (
        "# Two things were found.\n\n1. The first is large.\n2. The second is small.\n\n"
        "> **warning:** Few were asked.\n\n> **note:** It took long.\n\n\nReport: `s3://bucket/report.html`"
    )
    assert "Report: [a/report.html](file:///a/report.html)" in markdown(
        SUMMARY, "a/report.html", [], "file:///a/report.html"
    )


def test_markdown_tells_failures_and_where_results_are() -> None:
    failure = Failure(name="ball", stage="scan", reason="it rolled away")
    text = markdown(SUMMARY.model_copy(update={"failures": [failure]}), "r", ["a/one.json", "a/two.json"], None)
    assert "\n## Failed\n\n- **ball** (scan): it rolled away\n" in text
    assert text.endswith("Report: `r`\n\n- results: `a/one.json`\n- results: `a/two.json`")


def test_the_page_and_its_files_are_published_and_the_ui_shows_them(prefect_server: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    results = finished(store, "toys.summary", results_json=b"{}")
    failure = Failure(name="ball", stage="scan", reason="it rolled away")
    file = ResultFile(path="ball/results.json", shard=results.path, output="results.json")
    summary = SUMMARY.model_copy(update={"failures": [failure], "files": [file]})
    page = finished(store, "toys.report", summary=summary, report_html=b"<html>")

    @flow
    async def toys() -> tuple[Outcome, dict[str, Any]]:
        outcome = await publish(page, store, "my-toys", "toys")
        async with get_client() as client:
            wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
            return outcome, {shown.key: shown for shown in await client.read_artifacts(artifact_filter=wanted)}

    outcome, artifacts = asyncio.run(toys())
    report = Path(outcome.report)
    assert report.parent == tmp_path / "reports" / f"my-toys-{page.manifest.spec_hash[:8]}"
    assert report.read_bytes() == b"<html>"
    assert (report.parent / "ball" / "results.json").read_bytes() == b"{}"
    assert (outcome.headline, outcome.findings) == (SUMMARY.headline, SUMMARY.findings)
    assert outcome.failures == ["ball (scan): it rolled away"]
    assert artifacts.keys() == {"toys-found", "toys-summary", "toys-report"}
    assert json.loads(artifacts["toys-found"].data) == SUMMARY.table.rows
    assert artifacts["toys-found"].description == SUMMARY.headline
    assert "ball/results.json" in artifacts["toys-summary"].data
    assert report.as_uri() in artifacts["toys-report"].data
