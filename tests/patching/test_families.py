"""Two families: what the screen predicts, one test a feature, and everything else. Each holds its own rate."""

from __future__ import annotations

from functools import cache
from math import comb

import numpy as np
import pytest
from scipy import stats

from tasks.errors import BadInput
from tasks.patching.verdict import judge
from tests.patching.simulated import BASE, CHOICES, HIGH, LOW, OUTCOMES, PROMPTS, null, params, simulate, survivors

TENDS = {"bet": 0.28, "stop": 0.52, "invalid": 0.2}


def tends(prompt, arm, candidate, value):
    """Feature 2 raises stopping at its high value, on the risky prompt."""
    return TENDS if (prompt, arm, candidate, value) == ("risky", "feature", 2, HIGH) else BASE


def drawn(seed: int, candidates: int):
    """Survivors of a screen that says nothing of the trials: any prompt, choice and direction."""
    rng = np.random.default_rng(seed)
    prompts, choices = rng.choice(PROMPTS, candidates), rng.choice(CHOICES, candidates)
    effects = rng.choice([-0.1, 0.1], candidates)
    return survivors(
        candidates, dict(enumerate(zip(prompts.tolist(), choices.tolist(), effects.tolist(), strict=True)))
    )


def naive_fisher(k_a, n_a, k_b, n_b, direction):
    """By the hypergeometric sum over all tables with the same margins."""
    successes = k_a + k_b
    possible = range(max(0, successes - n_b), min(n_a, successes) + 1)
    p = {k: comb(n_a, k) * comb(n_b, successes - k) / comb(n_a + n_b, successes) for k in possible}
    if direction == 0:
        return sum(each for each in p.values() if each <= p[k_a] * (1 + 1e-7))
    return sum(each for k, each in p.items() if (k - k_a) * direction >= 0)


def naive_q(p: dict):
    """Smallest p_(j) m / j over all tests at least as large (Benjamini and Hochberg 1995)."""
    ranked = sorted(p.values())
    return {
        key: min(ranked[j - 1] * len(ranked) / j for j in range(1, len(ranked) + 1) if ranked[j - 1] >= own)
        for key, own in p.items()
    }


def test_both_families_equal_the_formulas():
    trials, kept = simulate(tends, 3, candidates=4, n=25, n_baseline=40), drawn(0, 4)
    named = {r["candidate"]: (r["effect_prompt"], r["effect_choice"], r["effect"]) for r in kept.to_pylist()}
    rows = trials.to_pylist()

    @cache
    def count(prompt, arm, candidate, value):
        mine = [
            r["choice"]
            for r in rows
            if (r["prompt"], r["arm"], r["candidate"], r["value_name"]) == (prompt, arm, candidate, value)
        ]
        return {outcome: mine.count(outcome) for outcome in OUTCOMES}, len(mine)

    p = {"primary": {}, "secondary": {}}
    for candidate in range(4):
        for prompt in PROMPTS:
            high, low = (count(prompt, "feature", candidate, value) for value in (HIGH, LOW))
            unedited = count(prompt, "baseline", None, None)
            sides = {
                "high_vs_low": (high, low),
                "high_vs_baseline": (high, unedited),
                "low_vs_baseline": (low, unedited),
            }
            for contrast, ((k_a, n_a), (k_b, n_b)) in sides.items():
                for choice in OUTCOMES:
                    planned = contrast == "high_vs_low" and named[candidate][:2] == (prompt, choice)
                    sign = int(np.sign(named[candidate][2])) if planned else 0
                    own = naive_fisher(k_a[choice], n_a, k_b[choice], n_b, sign)
                    p["primary" if planned else "secondary"][candidate, prompt, contrast, choice] = own
    assert len(p["primary"]) == 4
    expected = {key: (family, own, naive_q(p[family])[key]) for family in p for key, own in p[family].items()}
    effects = judge(trials, None, kept, params()).effects.to_pylist()
    found = {(r["candidate"], r["prompt"], r["contrast"], r["choice"]): (r["family"], r["p"], r["q"]) for r in effects}
    assert found.keys() == expected.keys()
    for key, (family, own, q) in expected.items():
        assert found[key][0] == family
        assert found[key][1:] == pytest.approx((own, q), rel=1e-6)


def test_null_studies_discover_something_in_either_family_at_most_as_often_as_stated():
    """With equal rates everywhere any discovery is false, and any that held-out seeds confirm."""
    studies, found, confirmed = 200, {"primary": 0, "secondary": 0}, 0
    for seed in range(studies):
        kept, rule = drawn(seed, 4), params(min_effect=0)
        trials = simulate(null, seed, candidates=4)
        again = simulate(null, seed, candidates=4, phase="confirmation", arms=("feature",))
        for name, family in judge(trials, again, kept, rule).findings["families"].items():
            found[name] += family["discoveries"] > 0
            confirmed += family["confirmed"]
    most = stats.binom.ppf(0.99, studies, 0.05)
    assert found["primary"] <= most
    assert found["secondary"] <= most
    assert confirmed <= stats.binom.ppf(0.99, studies, 2 * 0.05 * 0.05)
    assert found["primary"] > 0, "a test that never rejects holds any rate"


def test_a_predicted_effect_is_found_and_confirmed_more_often_than_one_among_all_tests():
    """22 points at 100 trials a value, and seven features that do nothing."""
    studies, rule = 25, params()
    predicted, unpredicted = survivors(8, {2: ("risky", "stop", 0.2)}), survivors(8)
    confirmed = blind = others = 0
    for seed in range(studies):
        trials = simulate(tends, seed, n=100, arms=("baseline", "feature"))
        again = simulate(tends, seed, n=100, phase="confirmation", arms=("feature",))
        rows = judge(trials, again, predicted, rule).verdict.to_pylist()
        confirmed += any(r["family"] == "primary" and r["candidate"] == 2 and r["confirmed"] for r in rows)
        others += any(r["candidate"] != 2 and r["confirmed"] for r in rows)
        rows = judge(trials, again, unpredicted, rule).verdict.to_pylist()
        blind += any(r["candidate"] == 2 and r["confirmed"] for r in rows)
    assert confirmed >= 0.5 * studies
    assert confirmed >= 1.3 * blind
    assert others <= stats.binom.ppf(0.99, studies, 0.1)


def test_an_effect_against_the_prediction_is_no_primary_discovery_and_is_told():
    strong = {"bet": 0.05, "stop": 0.9, "invalid": 0.05}
    trials = simulate(lambda p, arm, c, v: strong if (arm, c, v) == ("feature", 2, HIGH) else BASE, 1)
    verdict = judge(trials, None, survivors(named={2: ("risky", "stop", -0.3)}), params())
    rows = {(r["prompt"], r["choice"]): r for r in verdict.verdict.to_pylist()}
    assert ("risky", "stop") not in rows
    assert {r["family"] for r in rows.values()} == {"secondary"}
    assert rows["safe", "stop"]["effect"] > 0.3
    [alarm] = verdict.findings["alarms"]
    assert alarm["code"] == "contradicts_screen"
    assert "L10/1002 in stop on prompt risky, predicted -30, +" in alarm["text"]


def test_a_feature_that_moves_nothing_at_all_has_no_primary_test():
    kept = survivors(3, {1: (None, None, 0.0)})
    verdict = judge(simulate(null, 0, candidates=3), None, kept, params())
    families = verdict.findings["families"]
    assert (families["primary"]["tests"], families["secondary"]["tests"]) == (2, 3 * 2 * 3 * 3 - 2)


def test_what_the_trials_can_detect_is_stated():
    verdict = judge(simulate(null, 0, candidates=4, n=250), None, survivors(4), params())
    assert verdict.findings["detectable"] == {
        "trials": 250,
        "power": 0.8,
        "difference": pytest.approx(0.141, abs=0.001),
    }


@pytest.mark.parametrize("named", [("trust", "bet", 0.1), ("safe", "trust", 0.1)])
def test_survivors_of_another_study_are_refused(named):
    with pytest.raises(BadInput, match="'trust'"):
        judge(simulate(null, 0), None, survivors(named={1: named}), params())


def test_trials_of_features_that_did_not_survive_are_refused():
    with pytest.raises(BadInput, match=r"survivors\.candidates = 7"):
        judge(simulate(null, 0), None, survivors(7), params())
