"""A patching study in short: what terminal and UI show of its report."""

from __future__ import annotations

from tests.patching.report.pages import Report


def test_findings_say_their_family(report: Report):
    rows = report.summary.table.rows
    assert [row["family"] for row in rows] == [finding.family for finding in report.data.findings]
    first, second, third = report.summary.findings
    assert "in the primary family" in first
    assert "in the primary family" in second
    assert third.startswith("Not a discovery: ")
    assert "in the primary family, where the screen predicted" in third


def test_a_screen_without_survivors_says_what_it_knows_and_what_to_change(empty_report: Report):
    data, summary = empty_report.data, empty_report.summary
    assert summary.headline == data.headline
    assert summary.headline.startswith("None of 48 features screened moves the choice by 100.0 points")
    assert summary.findings == data.advice
    assert summary.findings[0].startswith("Lower selection.min_effect")
    [row] = summary.table.rows
    assert row["feature"] == data.screened.id.name
    assert (row["prompt"], row["choice"]) == (data.screened.prompt, data.screened.choice)
    assert row["sampled"] == "no, below 100.0"


def test_without_a_discovery_the_table_says_so(null_report: Report):
    assert null_report.summary.table.rows == [{"feature": "none", "effect (points)": "no effect passed the threshold"}]
    assert null_report.summary.cautions == null_report.data.cautions
    assert null_report.summary.failures == null_report.summary.files == []
