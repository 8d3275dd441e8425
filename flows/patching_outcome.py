"""What a finished patching study leaves: its report in the store, and artifacts in the Prefect UI."""

from __future__ import annotations

import asyncio

from prefect.artifacts import acreate_link_artifact, acreate_markdown_artifact, acreate_table_artifact

from flows.reports import Outcome, browsable
from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.report import numbers as fmt
from tasks.report.patching.data import ReportData

FINDINGS_SHOWN = 3
REPORT = "report.html"


async def publish(page: Shard, store: Store, study: str) -> Outcome:
    """Copy the report to ``reports/<study>-<hash>/report.html`` and show the findings in Prefect."""
    data = ReportData.model_validate(page.json("summary"))
    path = f"reports/{study}-{page.manifest.spec_hash[:8]}/{REPORT}"
    await asyncio.to_thread(store.ensure_bytes, path, page.file(REPORT))
    outcome = Outcome(
        headline=data.headline,
        findings=_strongest(data),
        report=store.url_of(path),
    )
    link = browsable(outcome.report)
    await acreate_table_artifact(_table(data), key="patching-findings", description=data.headline)
    await acreate_markdown_artifact(_markdown(data, outcome, link), key="patching-summary", description="In words")
    if link:
        await acreate_link_artifact(link, "Open the report", key="patching-report", description="With figures")
    return outcome


def _strongest(data: ReportData) -> list[str]:
    """The strongest findings, filled up with the strongest tests that are none; without tests, what to change."""
    others = [f"Not a discovery: {label}." for label in data.nearest] or data.advice
    return [*(finding.sentence for finding in data.strongest), *others][:FINDINGS_SHOWN]


def _table(data: ReportData) -> list[dict[str, str]]:
    """One row for each discovered contrast; a row that says so when there is none."""
    screened = data.screened
    if not data.numbers.tests and screened.id:
        where = {"feature": screened.id.name, "prompt": screened.prompt or "", "choice": screened.choice or ""}
        wanted = fmt.points(screened.min_effect, signed=False)
        return [where | {"exact effect (points)": fmt.points(screened.effect), "sampled": f"no, below {wanted}"}]
    if not data.findings:
        return [{"feature": "none", "effect (points)": "no effect passed the threshold"}]
    return [
        {
            "feature": finding.id.name,
            "prompt": finding.prompt,
            "choice": finding.choice,
            "family": finding.family,
            "contrast": finding.contrast.replace("_", " "),
            "effect (points)": fmt.points(finding.estimate.effect),
            "95 % interval": fmt.interval(finding.estimate.ci_low, finding.estimate.ci_high),
            "q": fmt.probability(finding.estimate.q),
            "held-out seeds": finding.status,
        }
        for finding in data.findings
    ]


def _markdown(data: ReportData, outcome: Outcome, link: str | None) -> str:
    lines = [f"# {data.headline}", ""]
    lines += [f"{number}. {sentence}" for number, sentence in enumerate(outcome.findings, start=1)]
    lines += ["", *(f"> **{caution.severity}:** {caution.text}\n" for caution in data.cautions)]
    lines += ["", f"Report: [{outcome.report}]({link})" if link else f"Report: `{outcome.report}`"]
    return "\n".join(lines)
