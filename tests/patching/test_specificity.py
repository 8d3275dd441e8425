"""A feature's effect against that of its random direction: effects, not rates; sizes, not signs."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from tasks.patching.verdict import judge
from tests.patching.simulated import BASE, HIGH, LOW, null, params, simulate, survivors

KEPT = survivors(3, {1: ("risky", "stop", 0.4)})


def stops(p: float) -> dict[str, float]:
    return {"bet": 0.8 - p, "stop": p, "invalid": 0.2}


def study(feature: tuple[float, float], control: tuple[float, float], n: int = 150, seed: int = 1):
    """Candidate 1 stops at these rates, low and high value, on both prompts."""
    rates = {("feature", LOW): feature[0], ("feature", HIGH): feature[1]}
    rates |= {("random", LOW): control[0], ("random", HIGH): control[1]}

    def rates_of(prompt, arm, candidate, value):
        return stops(rates[arm, value]) if candidate == 1 else BASE

    return judge(simulate(rates_of, seed, candidates=3, n=n), None, KEPT, params())


def found(verdict):
    return {r["prompt"]: r for r in verdict.verdict.to_pylist() if (r["candidate"], r["choice"]) == (1, "stop")}


@pytest.mark.parametrize(
    ("feature", "control", "specific"),
    [
        ((0.1, 0.5), (0.3, 0.3), True),
        ((0.1, 0.5), (0.2, 0.6), False),  # the same effect, at other rates
        ((0.3, 0.7), (0.1, 0.1), True),
        ((0.3, 0.6), (0.1, 0.7), False),  # a larger one
        ((0.3, 0.6), (0.7, 0.1), False),  # a larger one, the other way: the opposite direction was as likely
        ((0.1, 0.6), (0.4, 0.3), True),
    ],
)
def test_a_feature_is_specific_if_its_effect_exceeds_the_random_directions_in_size(feature, control, specific):
    for row in found(study(feature, control)).values():
        assert row["specific"] == specific
        assert ("not shown to be larger" in row["label"]) == (not specific)
        assert row["beyond"] == pytest.approx(row["effect"] - abs(row["control_effect"]))


def test_rates_that_differ_at_the_same_value_do_not_make_a_feature_specific():
    """At the high value 70 % against 30 % of answers stop, but the random direction's own effect is as large."""
    row = found(study((0.3, 0.7), (0.0, 0.3), n=60))["risky"]
    assert stats.fisher_exact([[42, 18], [18, 42]]).pvalue < 1e-4
    assert not row["specific"]


def test_comparison_equals_the_formula():
    verdict = study((0.3, 0.55), (0.5, 0.4), n=40)
    effects = {
        (r["candidate"], r["prompt"], r["choice"]): r
        for r in verdict.effects.to_pylist()
        if r["contrast"] == "high_vs_low"
    }
    rows = verdict.controls.to_pylist()
    assert len(rows) == len(effects) == 3 * 2 * 3
    p = {}
    for row in rows:
        key = row["candidate"], row["prompt"], row["choice"]
        own = effects[key]
        sign = own["direction"] or (1 if own["effect"] >= 0 else -1)
        rates = [(own[f"k_{s}"] + 0.5) / (own[f"n_{s}"] + 1) for s in "ab"]
        rates += [(row[f"k_{s}"] + 0.5) / (row[f"n_{s}"] + 1) for s in "ab"]
        error = math.sqrt(sum(r * (1 - r) / 41 for r in rates))
        one = sign * (rates[0] - rates[1]) - (rates[2] - rates[3])
        other = sign * (rates[0] - rates[1]) + (rates[2] - rates[3])
        p[key] = max(stats.norm.sf(one / error), stats.norm.sf(other / error))
        assert row["p"] == pytest.approx(p[key])
        assert row["beyond"] == pytest.approx(sign * own["effect"] - abs(row["effect"]))
        assert row["family"] == own["family"]
        assert row["beyond_ci_low"] <= row["beyond"] <= row["beyond_ci_high"]
    for name in ("primary", "secondary"):
        family = [r for r in rows if r["family"] == name]
        expected = stats.false_discovery_control([r["p"] for r in family])
        assert [r["q"] for r in family] == pytest.approx(expected)


def test_without_random_arm_specificity_is_unknown():
    rates = {LOW: stops(0.1), HIGH: stops(0.7)}
    trials = simulate(lambda p, arm, c, v: rates.get(v, BASE), 1, candidates=3, arms=("baseline", "feature"))
    verdict = judge(trials, None, KEPT, params())
    assert len(verdict.verdict) > 0
    assert {(r["specific"], r["beyond"], r["beyond_q"]) for r in verdict.verdict.to_pylist()} == {(None, None, None)}
    assert all(r["label"].endswith("; not compared with a random direction") for r in verdict.verdict.to_pylist())


def test_equal_effects_are_seldom_called_different():
    """The random direction does what the feature does: a discovery is called specific at most as often as alpha."""
    studies = 25
    wrong = sum(
        any(row["specific"] for row in found(study((0.2, 0.5), (0.2, 0.5), n=60, seed=seed)).values())
        for seed in range(studies)
    )
    assert wrong <= stats.binom.ppf(0.99, studies, 2 * 0.05)


def test_nothing_is_compared_without_features():
    assert len(judge(simulate(null, 0, candidates=0), None, survivors(0), params()).controls) == 0
