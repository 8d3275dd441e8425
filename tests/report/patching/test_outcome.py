"""What the terminal and Prefect's artifacts show of a report."""

from __future__ import annotations

from flows.patching_outcome import _markdown, _strongest, _table
from flows.reports import Outcome
from tests.report.patching.pages import Report


def shown(report: Report) -> Outcome:
    return Outcome(headline=report.data.headline, findings=_strongest(report.data), report="report.html")


def test_findings_say_their_family(report: Report):
    rows = _table(report.data)
    assert [row["family"] for row in rows] == [finding.family for finding in report.data.findings]
    first, second, third = _strongest(report.data)
    assert "in the primary family" in first
    assert "in the primary family" in second
    assert third.startswith("Not a discovery: ")
    assert "in the primary family, where the screen predicted" in third


def test_a_screen_without_survivors_says_what_it_knows_and_what_to_change(empty_report: Report):
    data, outcome = empty_report.data, shown(empty_report)
    assert outcome.headline.startswith("None of 48 features screened moves the choice by 100.0 points")
    assert outcome.findings == data.advice
    [row] = _table(data)
    assert row["feature"] == data.screened.id.name
    assert (row["prompt"], row["choice"]) == (data.screened.prompt, data.screened.choice)
    assert row["sampled"] == "no, below 100.0"
    text = _markdown(data, outcome, None)
    assert text.startswith(f"# {data.headline}")
    assert "1. Lower selection.min_effect" in text
