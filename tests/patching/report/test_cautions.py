"""Each caution appears when its cause is there, and not otherwise."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tasks.patching.replication import duplicate_alarms
from tasks.patching.report.cautions import cautions
from tasks.patching.report.data import Agreement, ChoiceCell, Detectable, EffectRow, Estimate, FeatureId, LayerRow, Rate
from tests.patching.report.pages import build
from tests.patching.report.samples import finding
from tests.patching.report.synthetic import Stage

FINDING = finding()


def codes(**changes) -> list[str]:
    given = {
        "alarms": [],
        "relative_delta": {3: 0.02},
        "cells": [cell("baseline", invalid=2)],
        "effects": [effect("bet", 0.4)],
        "findings": [FINDING],
        "layers": [layer(0.8, 0.1)],
        "agreement": Agreement(n=40, inside=38, median_difference=0.02),
        "confirmation_ran": True,
        "detectable": Detectable(trials=250, power=0.8, difference=0.14),
        "exact": {FINDING.id: 0.05, FeatureId(candidate=4, layer=12, feature=99): -0.2},
    }
    return [c.code for c in cautions(**given | changes)]


def cell(arm: str, invalid: int) -> ChoiceCell:
    return ChoiceCell(prompt="safe", arm=arm, layer=None, n=60, counts={"bet": 60 - invalid, "invalid": invalid})


def effect(choice: str, size: float, n: int = 30, baseline: float = 0.5) -> EffectRow:
    rate = Rate(n=n, k=n // 2)
    return EffectRow(
        id=FINDING.id,
        prompt="safe",
        choice=choice,
        family="primary",
        estimate=Estimate(effect=size, ci_low=size - 0.1, ci_high=size + 0.1, a=rate, b=rate),
        control=None,
        confirmation=None,
        exact=None,
        baseline=Rate(n=100, k=round(100 * baseline)),
        status="confirmed",
    )


def layer(variance_explained: float, dead_share: float) -> LayerRow:
    counts = dict.fromkeys(("layer", "searched", "significant", "candidates", "survivors", "discoveries"), 1)
    return LayerRow(**counts, variance_explained=variance_explained, dead_share=dead_share)


def test_a_sound_study_has_none():
    assert codes() == []


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("duplicate-responses", {"alarms": [{"code": "duplicate_responses", "text": "copies", "cells": 1}]}),
        ("invalid-share", {"cells": [cell("baseline", invalid=2), cell("random", invalid=20)]}),
        ("invalid-shift", {"effects": [effect("bet", 0.4), effect("invalid", -0.2)]}),
        ("not-specific", {"findings": [finding(specific=False)]}),
        ("variance-explained", {"layers": [layer(0.8, 0.1), layer(0.3, 0.1)]}),
        ("dead-features", {"layers": [layer(0.8, 0.7)]}),
        ("large-edits", {"relative_delta": {3: 0.8, 4: 0.9}}),
        ("no-confirmation", {"confirmation_ran": False}),
        ("few-trials", {"effects": [effect("bet", 0.4, n=12)]}),
        ("screen-disagrees", {"agreement": Agreement(n=40, inside=20, median_difference=0.2)}),
        ("power", {"exact": {FeatureId(candidate=4, layer=12, feature=99): -0.1}}),
        ("power", {"detectable": Detectable(trials=2, power=0.8, difference=None)}),
        ("ceiling", {"effects": [effect("bet", 0.4, baseline=1.0)]}),
    ],
)
def test_cause_and_caution(code, changes):
    assert codes(**changes) == [code]


def test_a_pair_is_specific_if_one_of_its_choices_is():
    assert codes(findings=[finding(specific=False), finding(choice="stop")]) == []


def test_warnings_come_before_notes():
    found = codes(layers=[layer(0.8, 0.7)], findings=[finding(specific=False)])
    assert found == ["not-specific", "dead-features"]


def test_large_edits_are_measured_on_the_trials_of_the_feature(tmp_path, stages):
    trials = stages["trials"][0].tables["trials"]
    length = pc.if_else(pc.equal(trials["arm"], "feature"), 0.7, 0.1)
    at = trials.schema.get_field_index("relative_delta")
    far = Stage(tables={"trials": trials.set_column(at, "relative_delta", length)})
    shown = {c.code: c.text for c in build(tmp_path, stages | {"trials": [far]}).data.cautions}
    assert "L12/824 (70" in shown["large-edits"]


def test_alarms_of_the_verdict_are_shown(tmp_path, stages):
    trials = stages["trials"][0].tables["trials"]
    at = trials.schema.get_field_index("tokens")
    copies = pa.array([b"\x01\0\0\0" * 20] * len(trials))
    greedy = trials.set_column(at, "tokens", copies).set_column(at + 1, "n_tokens", pa.array([20] * len(trials)))
    verdict = stages["verdict"][0]
    findings = verdict.json["findings"] | {"alarms": duplicate_alarms(greedy)}
    alarmed = Stage(tables=verdict.tables, json={"findings": findings})
    [shown] = [c for c in build(tmp_path, stages | {"verdict": [alarmed]}).data.cautions if "duplicate" in c.code]
    assert shown.severity == "warning"
    assert "copies of another one" in shown.text
