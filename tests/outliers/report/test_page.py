"""The page: one file, the same bytes every time, nothing executed that we did not write."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.outliers.report.collect import Limits
from tasks.outliers.report.page import TABLE_ROWS
from tasks.outliers.report.run import scans_of
from tasks.outliers.spec import Criteria
from tasks.report import numbers as fmt
from tasks.report.records import RunFacts
from tests.outliers.report.pages import Report, build
from tests.outliers.report.synthetic import Examination, Planted, World, examine
from tests.outliers.report.worlds import FAILURE, LARGE, MOE, SMALL, SWEEP
from tests.report.outline import outline

ALL = ("sweep", "one", "moe", "none", "failed")


def without_run(html: str) -> str:
    """The page without the one element that may differ between equal runs."""
    page, blocks = re.subn(r'(?<=<script type="application/json" id="run">).*?(?=</script>)', "", html)
    assert blocks == 1
    return page


def run_facts(report: Report) -> RunFacts:
    text = re.search(r'<script type="application/json" id="run">(.*?)</script>', report.html)[1]
    return RunFacts.model_validate(json.loads(text))


@pytest.mark.parametrize("name", ALL)
def test_is_well_formed_and_loads_nothing(name, request):
    parsed = outline(request.getfixturevalue(name).html)
    assert parsed.open == []
    assert all(value.startswith("#") for _, value in parsed.loads)
    assert parsed.handlers == []
    assert len([given for given, _ in parsed.scripts if given.get("type") != "application/json"]) == 2


@pytest.mark.parametrize("name", ALL)
def test_every_section_is_linked_and_there_and_every_id_is_one(name, request):
    html = request.getfixturevalue(name).html
    for anchor in re.findall(r'<a href="#([\w-]+)"', html):
        assert len(re.findall(rf'id="{anchor}"', html)) == 1
    ids = re.findall(r'\sid="([\w-]+)"', without_run(html).split("<script", 1)[0])
    assert len(ids) == len(set(ids))


def test_the_glossary_names_the_criteria_of_the_run(tmp_path):
    criteria = Criteria(threshold=5.5, layer_share=0.3, relative_threshold=7, massive_magnitude=50, massive_ratio=500)
    html = build(tmp_path, [examine(replace(SMALL, criteria=criteria))]).html
    words = re.sub(r"<[^>]+>", "", html[html.index('id="reading"') :]).replace(fmt.NBSP, " ")
    for said in (
        "(here θ = 5.5)",
        "(here a = 30.0 % and b = 6.0 %)",
        "(here c = 7)",
        "(here m = 50 and k = 500)",
    ):
        assert said in words


def test_hostile_names_are_escaped(sweep: Report):
    assert "<script>window.hacked" not in sweep.html
    assert "<img src=x" not in sweep.html
    assert "&lt;img src=x" in sweep.html
    assert sweep.summary.table.rows[-1]["model"].startswith("<img"), "programs get the name as it is"


def test_equal_examinations_give_equal_bytes_wherever_they_ran(tmp_path, examined: list[Examination], sweep: Report):
    again = build(tmp_path, examined, host="another-worker", failures=[FAILURE])
    assert again.shard.manifest.outputs["summary"] == sweep.shard.manifest.outputs["summary"]
    assert again.html != sweep.html
    assert without_run(again.html) == without_run(sweep.html)


def test_run_facts_have_the_scans_that_the_summary_names(one: Report):
    stages = {stage.stage: stage for stage in run_facts(one).stages}
    assert list(stages) == ["prepare", "scan", "summary", "ablation"]
    assert stages["scan"].shards == 2
    assert stages["scan"].seconds == pytest.approx(84.0)


def test_outputs_and_counts(sweep: Report):
    assert set(sweep.shard.manifest.outputs) == {"report.html", "summary"}
    assert sweep.shard.manifest.counts == {"failures": 1, "models": 6}


def test_failures_are_listed_with_stage_and_reason(sweep: Report, failed: Report):
    for report in (sweep, failed):
        table = re.search(r'<table id="failures">.*?</table>', report.html, re.S)[0]
        assert all(text in table for text in ("Gated-70B", "example/gated-70b", "prepare", "accept its licence first"))
    assert failed.data.headline == "No model could be examined."


def test_only_a_mixture_of_experts_has_a_section_on_them(sweep: Report):
    for i, world in enumerate(SWEEP):
        assert (f'id="m{i}-experts"' in sweep.html) == (world is MOE)
    assert "16 in each of 11 layers, 2 per token, and shared ones for every token" in sweep.html


def test_what_is_missing_is_said(sweep: Report, none: Report):
    assert "No functional check was run." in sweep.html
    assert "Nothing was set to zero: no dimension has an outlier." in none.html
    assert "No value reaches the threshold." in none.html
    assert "None." in none.html


def test_facts_of_a_run(sweep: Report):
    large = sweep.html[sweep.html.index('id="m1"') :]
    assert "weights quantized: GGUF Q4_1" in large
    assert "none begins with BOS" in large
    assert f"{LARGE.layers} layers, width {LARGE.d}" in large
    assert sweep.data.models[1].facts.fingerprint in large


def test_rows_are_capped_and_the_rest_is_counted(tmp_path):
    planted = tuple(Planted(dim, 20) for dim in range(300))
    world = World(name="wide", source="wide", layers=3, d=320, planted=planted, sequences=2, length=20)
    report = build(tmp_path, [examine(world)])
    assert report.data.models[0].counts.systematic == 300
    assert "240 strongest of 300" in report.html
    assert "Columns: the 60 strongest; 240 more" in report.html
    assert len(re.findall(r'<span class="feature">', report.html)) == TABLE_ROWS
    assert Limits.of(1).heat_dims == 60
    assert Limits.of(12).heat_dims == 16


def test_is_small_enough_to_send(tmp_path):
    """Eight models of 48 blocks and 128 experts, with more systematic dimensions than are shown."""
    planted = tuple(Planted(dim, 20) for dim in range(70))
    big = examine(World(name="m0", source="x", layers=48, d=96, planted=planted, sequences=2, length=12, experts=128))
    many = [Examination(World(name=f"m{i}", source="x"), big.prepared, big.summary, big.ablation) for i in range(8)]
    assert len(build(tmp_path, many).html.encode()) < 8_000_000


def test_a_deleted_scan_is_left_out(tmp_path, examined: list[Examination]):
    report = build(tmp_path, [examined[SWEEP.index(SMALL)]])
    store = Store(tmp_path)
    ref = report.shard.manifest.spec.inputs["summary"][0]
    summary = Shard.open(store, ref)
    assert len(scans_of(store, summary)) == 2
    store.remove(f"{summary.manifest.spec.inputs['scans'][0].shard}/manifest.json")
    assert len(scans_of(store, summary)) == 1
