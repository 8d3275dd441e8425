"""The report's content against the tables it was made from."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.patching.report.pages import Report
from tests.patching.report.synthetic import CHOICES, LAYERS, PROMPTS, World


def test_planted_features_are_the_findings(report: Report, world: World):
    planted = {world.candidates[i]["feature"] for i in (14, 27)}
    assert {f.id.feature for f in report.data.strongest} == planted
    assert {f.status for f in report.data.findings} == {"confirmed"}
    assert report.data.headline.startswith("Two features causally changed")
    primary = [f for f in report.data.findings if f.family == "primary"]
    assert {f.id.feature for f in primary} == planted
    assert all(f.predicted * f.estimate.effect > 0 for f in primary)
    assert [f.family for f in report.data.strongest] == ["primary"] * 2


def test_findings_are_the_rows_of_the_verdict(report: Report):
    rows = report.rows("verdict", "verdict")
    assert len(rows) == len(report.data.findings)
    found = {(f.id.candidate, f.prompt, f.contrast, f.choice): f for f in report.data.findings}
    for row in rows:
        f = found[row["candidate"], row["prompt"], row["contrast"], row["choice"]]
        e, again = f.estimate, f.confirmation
        assert (e.effect, e.ci_low, e.ci_high, e.q) == (row["effect"], row["ci_low"], row["ci_high"], row["q"])
        assert (e.a.n, e.a.k, e.b.n, e.b.k) == (row["n_a"], row["k_a"], row["n_b"], row["k_b"])
        assert (again.effect, again.q) == (row["confirmation_effect"], row["confirmation_q"])
        assert (f.status == "confirmed", f.specific) == (row["confirmed"], row["specific"])
        assert f.label == row["label"]
        assert (f.family, f.predicted, f.beyond.effect, f.beyond.q) == (
            row["family"],
            row["predicted"],
            row["beyond"],
            row["beyond_q"],
        )
    numbers = report.data.numbers
    for name, family in (("primary", numbers.primary), ("secondary", numbers.secondary)):
        own = [row for row in rows if row["family"] == name]
        assert (family.discoveries, family.confirmed) == (len(own), sum(row["confirmed"] for row in own))
    assert (numbers.primary.tests, numbers.secondary.tests) == (8, 8 * 2 * 3 * 3 - 8)


def test_findings_come_strongest_first_one_per_feature(report: Report):
    for family in ("primary", "secondary"):
        sizes = [abs(f.estimate.effect) for f in report.data.findings if f.family == family]
        assert sizes == sorted(sizes, reverse=True)
    assert [f.family for f in report.data.findings] == sorted(f.family for f in report.data.findings)
    assert len({f.id for f in report.data.strongest}) == len(report.data.strongest)


def test_control_is_counted_from_the_random_arm(report: Report):
    trials = report.rows("trials", "trials")
    n = Counter((r["candidate"], r["prompt"], r["value_name"]) for r in trials if r["arm"] == "random")
    k = Counter((r["candidate"], r["prompt"], r["value_name"], r["choice"]) for r in trials if r["arm"] == "random")
    assert len(report.data.effects) == 8 * 2 * 3
    for row in report.data.effects:
        at = {v: (row.id.candidate, row.prompt, v) for v in ("safe", "risky")}
        rates = {v: k[*cell, row.choice] / n[cell] for v, cell in at.items()}
        assert row.control.effect == pytest.approx(rates["risky"] - rates["safe"])
        assert row.control.ci_low <= row.control.effect <= row.control.ci_high


def test_exact_effects_and_doses_are_those_of_the_screen(report: Report):
    screen = {
        (r["candidate"], r["prompt"], r["arm"], r["dose"]): r
        for r in report.rows("screen", "screen")
        if r["arm"] in ("feature", "random")
    }
    for row in report.data.effects:
        high, low = (screen[row.id.candidate, row.prompt, "feature", dose] for dose in (1.0, 0.0))
        assert row.exact == high[f"p_{row.choice}"] - low[f"p_{row.choice}"]
    assert len(report.data.doses) == 6 * 2 * 3
    assert [c.id for c in report.data.doses[:6]] == [report.data.strongest[0].id] * 6
    for curve in report.data.doses:
        assert curve.doses == [-1.0, 0.0, 0.5, 1.0, 2.0]
        for arm, shown in (("feature", curve.feature), ("random", curve.random)):
            cells = [screen[curve.id.candidate, curve.prompt, arm, dose] for dose in curve.doses]
            assert shown == [cell[f"p_{curve.choice}"] for cell in cells]


def test_agreement_counts_exact_effects_inside_the_interval(report: Report):
    inside = [r.estimate.ci_low <= r.exact <= r.estimate.ci_high for r in report.data.effects]
    assert (report.data.agreement.n, report.data.agreement.inside) == (48, sum(inside))


def test_layers_count_every_stage(report: Report):
    features = report.rows("contrast", "features")
    quality = {r["layer"]: r for r in report.rows("saes", "quality")}
    assert [r.layer for r in report.data.layers] == list(LAYERS)
    for row in report.data.layers:
        own = [f for f in features if f["layer"] == row.layer]
        assert (row.searched, row.significant) == (len(own), sum(f["q"] <= 0.05 for f in own))
        assert row.variance_explained == quality[row.layer]["variance_explained"]
    assert sum(r.candidates for r in report.data.layers) == len(report.data.candidates) == 48
    assert sum(r.survivors for r in report.data.layers) == 8
    assert sum(r.discoveries for r in report.data.layers) == 2


def test_outcomes_hold_every_trial_and_invalid_answers(report: Report):
    trials = report.rows("trials", "trials")
    assert sum(c.n for c in report.data.outcomes) == len(trials) == report.data.numbers.trials_discovery
    baseline = next(c for c in report.data.outcomes if (c.prompt, c.arm) == ("risky", "baseline"))
    counted = Counter(r["choice"] for r in trials if r["condition"] == "risky_baseline")
    assert baseline.counts == dict(counted)
    every = trials + report.rows("confirmation", "trials")
    invalid = sum(r["choice"] == "invalid" for r in every)
    assert report.data.numbers.invalid_share == pytest.approx(invalid / len(every))


def test_words_are_those_that_passed(report: Report):
    passed = [r for r in report.rows("words", "words") if r["q"] is not None and r["q"] <= 0.05]
    assert len(report.data.words) == len(passed) > 5
    shown = {(w.id.candidate, w.contrast, w.word): w for w in report.data.words}
    for row in passed:
        w = shown[row["candidate"], row["contrast_name"], row["word"]]
        assert (w.a.rate, w.b.rate, w.q, w.direction) == (row["rate_a"], row["rate_b"], row["q"], row["direction"])


def test_examples_are_the_first_trials_of_each_condition(report: Report):
    trials = report.rows("trials", "trials")
    assert {s.id for s in report.data.examples} == {f.id for f in report.data.findings}
    for shown in report.data.examples:
        for column, arm in zip(shown.columns, ("baseline", "feature", "feature"), strict=True):
            candidate = None if arm == "baseline" else shown.id.candidate
            own = [r for r in trials if (r["condition"], r["arm"]) == (column.condition, arm)]
            own = [r for r in own if r["candidate"] == candidate]
            assert [e.trial for e in column.items] == [0, 1, 2, 3]
            assert [e.choice for e in column.items] == [r["choice"] for r in sorted(own, key=lambda r: r["trial"])[:4]]


def test_setup_names_model_saes_seed_and_prompts(report: Report):
    setup = report.data.setup
    assert setup.choices == [*CHOICES, "invalid"]
    assert [p.name for p in setup.prompts] == list(PROMPTS)
    assert setup.prompts[0].tokens == 97
    said = "bet 45 %, stop 50 % by the first token; most probable '2' 50 %; 1 of 2 answers read"
    assert [prompt.tried for prompt in setup.prompts] == [said, *(None for _ in PROMPTS[1:])]
    assert report.html.count(f"Unedited: {said}.".replace("'", "&#39;")) == 1
    assert setup.sae_convention == "raw_residual"
    assert [s.layer for s in setup.saes] == list(LAYERS)
    assert setup.seed == 11
    assert setup.settings["trials.temperature"] == "0.7"
    assert setup.settings["screen.doses"] == "[-1.0, 0.0, 0.5, 1.0, 2.0]"


def test_sources_name_every_shard(report: Report):
    assert [s.stage for s in report.data.sources] == [
        "prepare", "choices", "train SAEs", "contrast", "screen", "survivors", "trials", "confirmation", "verdict",
        "words",
    ]  # fmt: skip
    by_stage = {s.stage: s for s in report.data.sources}
    assert by_stage["screen"].shards == 2
    assert by_stage["trials"].counts == {"trials": 3040}


def test_null_study_is_reported_as_one(null_report: Report):
    data = null_report.data
    assert data.headline.startswith("No feature was found to change")
    assert data.findings == data.strongest == data.words == []
    assert all("raises" in label or "lowers" in label for label in data.nearest)
    assert data.nearest
    assert len(data.examples) == 2, "without a finding, the first sampled feature on each prompt"
    assert [c.code for c in data.cautions if c.code == "few-trials"]


def test_study_without_survivors(empty_report: Report):
    data = empty_report.data
    largest = max(abs(point.exact) for point in data.candidates)
    assert data.headline.startswith("None of 48 features screened moves the choice by 100.0 points")
    assert data.screened.id.name in data.headline
    assert abs(data.screened.effect) == largest
    assert f"{100 * largest:.1f} points in" in data.headline
    assert data.advice[0].startswith("Lower selection.min_effect (100.0 points")
    assert data.advice[0] in empty_report.html
    assert data.effects == data.examples == []
    assert len({c.id for c in data.doses}) == 6, "the candidates with the largest exact effects instead"
    assert data.agreement is None
    assert data.nearest == []
    assert {c.arm for c in data.outcomes} == {"baseline"}


def test_study_without_confirmation(unconfirmed_report: Report):
    data = unconfirmed_report.data
    assert {f.status for f in data.findings} == {"untested"}
    assert "not yet tested" in data.headline
    assert "no-confirmation" in [c.code for c in data.cautions]
    assert {r.variance_explained for r in data.layers} == {None}
