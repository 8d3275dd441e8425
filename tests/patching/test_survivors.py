"""Which candidates are sampled, and the one test that the exact screen predicts for each."""

from __future__ import annotations

from itertools import product

import pyarrow as pa
import pytest
from pydantic import ValidationError

from tasks.patching.spec import LIMITS, SelectionSettings, TrialSettings, VerdictSettings
from tasks.patching.survivors import choose_survivors, rank_by_effect, summary
from tasks.stats.power import detectable_difference

PROMPTS, CHOICES = ["safe", "risky"], ["bet", "stop"]
EFFECTS = {
    0: {("safe", "bet"): 0.03, ("risky", "bet"): -0.01},
    1: {("safe", "stop"): 0.05, ("risky", "stop"): -0.30},
    2: {},
    3: {("safe", "bet"): -0.12, ("safe", "invalid"): 0.20},
    4: {("risky", "bet"): 0.09},
}
"""candidate: (prompt, outcome): p(outcome | high) - p(outcome | low) in the screen."""


@pytest.fixture
def ranked() -> pa.Table:
    candidates = pa.table({"candidate": pa.array(EFFECTS, pa.int32()), "layer": [3] * 5, "feature": range(10, 15)})
    rows = [
        {"candidate": candidate, "prompt": prompt, "arm": arm, "dose": dose}
        | {
            f"p_{outcome}": 0.3 + (dose * effects.get((prompt, outcome), 0.0) if arm == "feature" else dose * 0.02)
            for outcome in (*CHOICES, "invalid")
        }
        for (candidate, effects), prompt, arm, dose in product(
            EFFECTS.items(), PROMPTS, ("feature", "random"), (-1.0, 0.0, 1.0)
        )
    ]
    return rank_by_effect(candidates, pa.Table.from_pylist(rows), PROMPTS, CHOICES)


def chosen(ranked: pa.Table, **settings) -> list[int]:
    return choose_survivors(ranked, SelectionSettings(**settings))["candidate"].to_pylist()


def test_each_candidate_is_named_the_prompt_choice_and_direction_of_its_largest_effect(ranked):
    named = {r["candidate"]: (r["effect_prompt"], r["effect_choice"], r["effect"]) for r in ranked.to_pylist()}
    assert named[0] == ("safe", "bet", pytest.approx(0.03))
    assert named[1] == ("risky", "stop", pytest.approx(-0.3))
    assert named[4] == ("risky", "bet", pytest.approx(0.09))
    assert ranked["candidate"].to_pylist() == [1, 3, 4, 0, 2]
    assert ranked["rank"].to_pylist() == [1, 2, 3, 4, 5]
    assert ranked["control_effect"].to_pylist() == pytest.approx([0.02] * 5)


def test_what_the_parser_decides_is_never_predicted(ranked):
    row = next(r for r in ranked.to_pylist() if r["candidate"] == 3)
    assert (row["effect_prompt"], row["effect_choice"], row["effect"]) == ("safe", "bet", pytest.approx(-0.12))


def test_a_candidate_that_moves_nothing_predicts_nothing(ranked):
    row = ranked.to_pylist()[-1]
    assert (row["candidate"], row["effect"], row["effect_prompt"], row["effect_choice"]) == (2, 0.0, None, None)


@pytest.mark.parametrize(
    ("settings", "candidates"),
    [
        ({}, [1, 3]),
        ({"max_survivors": 5}, [1, 3, 4]),
        ({"min_effect": 0.1}, [1, 3]),
        ({"min_effect": 0.5}, []),
        ({"max_survivors": 1}, [1]),
        ({"candidates": "all"}, [1, 3, 4, 0, 2]),
        ({"candidates": "all", "max_survivors": 2}, [1, 3]),
        ({"candidates": "all", "min_effect": 0.02}, [1, 3, 4, 0]),
        ({"candidates": "all", "max_survivors": 4, "min_effect": 0.1}, [1, 3]),
    ],
)
def test_every_limit_that_is_given_holds(ranked, settings, candidates):
    assert chosen(ranked, **settings) == candidates


def test_limits_are_in_the_form():
    limits = LIMITS["screen"]
    described = {name: field.description for name, field in SelectionSettings.model_fields.items()}
    assert f"{limits.max_survivors} for 'screen', no limit for 'all'" in described["max_survivors"]
    assert f"{limits.min_effect} for 'screen', 0 for 'all'" in described["min_effect"]
    with pytest.raises(ValidationError):
        SelectionSettings(max_survivors=0)


def test_the_form_says_what_the_default_trials_can_detect():
    n, alpha = TrialSettings().trials_per_cell, VerdictSettings().alpha / LIMITS["screen"].max_survivors
    found = {power: round(100 * detectable_difference(n, alpha, power)) for power in (0.8, 0.5)}
    words = " ".join(SelectionSettings.__doc__.split())
    assert f"with {n} trials a value, 80 of 100 studies find one that moves a choice by {found[0.8]} points" in words
    assert f"50 of 100 one that moves it by {found[0.5]}." in words


def test_the_summary_tells_what_was_screened_and_how_far_it_was_from_the_limit(ranked):
    said = summary(ranked, SelectionSettings(min_effect=0.5))
    assert (said["candidates"], said["min_effect"], said["max_survivors"]) == (5, 0.5, 2)
    largest = said["largest"]
    assert (largest["layer"], largest["feature"], largest["effect_prompt"]) == (3, 11, "risky")
    assert largest["effect"] == pytest.approx(-0.3)
    assert summary(ranked.slice(0, 0), SelectionSettings())["largest"] is None
