"""A patching study's report in short."""

from __future__ import annotations

from tasks.patching.report.data import ReportData
from tasks.report import numbers as fmt
from tasks.report.summary import Summary, SummaryTable

FINDINGS = 3


def summarize(data: ReportData) -> Summary:
    return Summary(
        headline=data.headline,
        findings=findings(data),
        cautions=data.cautions,
        table=SummaryTable(key="patching-findings", rows=table_rows(data)),
    )


def findings(data: ReportData) -> list[str]:
    """The strongest findings, filled up with the strongest tests that are none; without tests, what to change."""
    others = [f"Not a discovery: {label}." for label in data.nearest] or data.advice
    return [*(finding.sentence for finding in data.strongest), *others][:FINDINGS]


def table_rows(data: ReportData) -> list[dict[str, str]]:
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
