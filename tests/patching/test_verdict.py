import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tasks.errors import BadInput
from tasks.patching.effects import contrasts, edited_features, measure_effects
from tasks.patching.labels import label
from tasks.patching.tables import MEASURED
from tasks.patching.verdict import judge
from tests.patching.simulated import (
    BASE,
    CHOICES,
    HIGH,
    LOW,
    OUTCOMES,
    PROMPTS,
    layer_of,
    null,
    params,
    simulate,
    survivors,
)

KEPT = survivors(named={5: ("risky", "stop", 0.6)})
STOPS = {"bet": 0.05, "stop": 0.9, "invalid": 0.05}


def planted(candidate=5, value=HIGH, rates=STOPS, prompts=("risky",)):
    """One feature moves the choice at one value; its random control doesn't."""

    def rates_of(prompt, arm, which, value_name):
        hit = arm == "feature" and which == candidate and value_name == value and prompt in prompts
        return rates if hit else BASE

    return rates_of


def found(verdict):
    return {(r["candidate"], r["prompt"], r["choice"]): r for r in verdict.verdict.to_pylist()}


def test_a_planted_feature_is_the_only_discovery_and_is_confirmed():
    rates = planted()
    verdict = judge(simulate(rates, 1), simulate(rates, 1, phase="confirmation", n=60), KEPT, params())
    rows = found(verdict)
    assert {(c, p) for c, p, _ in rows} == {(5, "risky")}
    stop = rows[5, "risky", "stop"]
    assert (stop["contrast"], stop["layer"], stop["feature"]) == ("high_vs_low", layer_of(5), 1005)
    assert stop["effect"] > 0.1
    assert stop["ci_low"] > 0
    assert stop["q"] <= 0.05
    assert stop["specific"]
    assert stop["confirmed"]
    assert stop["confirmation_n_a"] == 60
    assert stop["confirmation_q"] <= 0.05
    assert rows[5, "risky", "bet"]["effect"] < -0.1
    assert verdict.confirm.to_pylist() == [
        {"candidate": 5, "layer": layer_of(5), "feature": 1005, "prompts": ["risky"]}
    ]
    assert verdict.findings["features"] == [5]
    assert verdict.findings["strongest"][0]["discovery"]
    assert (stop["family"], stop["predicted"], stop["direction"], stop["confirmation_direction"]) == (
        "primary",
        0.6,
        1,
        1,
    )
    assert {(r["family"], r["direction"]) for key, r in rows.items() if key != (5, "risky", "stop")} == {
        ("secondary", None)
    }
    families = verdict.findings["families"]
    assert (families["primary"]["tests"], families["secondary"]["tests"]) == (8, 8 * 2 * 3 * 3 - 8)
    assert families["primary"] | {"tests": 8} == {
        "tests": 8, "untested": 0, "discoveries": 1, "features": 1, "confirmation_tests": 1, "confirmed": 1,
    }  # fmt: skip


def test_labels_name_value_direction_prompt_and_comparison():
    lowers = survivors(named={5: ("risky", "stop", -0.55)})
    up = found(judge(simulate(planted(value=HIGH), 1), None, KEPT, params()))[5, "risky", "stop"]
    down = found(judge(simulate(planted(value=LOW), 2), None, lowers, params()))[5, "risky", "stop"]
    a, b = (f"{r['rate_a']:.0%} ({r['k_a']}/30) vs {r['rate_b']:.0%} ({r['k_b']}/30)" for r in (up, down))
    name = f"L{layer_of(5)}/1005: value risky"
    assert up["label"].startswith(f"{name} raises stop on prompt risky: {a} with value safe; +")
    assert down["label"].startswith(f"{name} lowers stop on prompt risky: {b} with value safe; -")
    for row, said in ((up, "+60"), (down, "-55")):
        assert f"q = {row['q']:.2g} in the primary family, where the screen predicted {said}; " in row["label"]
        assert f"larger than the effect of a random direction ({100 * row['beyond']:+.0f} points [" in row["label"]


@pytest.mark.parametrize(
    ("contrast", "said"),
    [
        ("low_vs_baseline", "value safe lowers invalid answers on prompt safe: 10% (3/30) vs 40% (24/60) with no edit"),
        ("high_vs_reconstruction", "with the SAE's reconstruction without an edit"),
    ],
)
def test_labels_of_other_contrasts(contrast, said):
    row = {"layer": 3, "feature": 7, "contrast": contrast, "choice": "invalid", "prompt": "safe"}
    row |= {"rate_a": 0.1, "k_a": 3, "n_a": 30, "rate_b": 0.4, "k_b": 24, "n_b": 60, "effect": -0.3}
    row |= {"ci_low": -0.4, "ci_high": -0.1, "q": 0.01, "family": "secondary", "predicted": None}
    assert said in label(row, LOW, HIGH)
    assert label(row, LOW, HIGH).endswith("q = 0.01 in the secondary family")


def test_an_effect_on_invalid_answers_is_found():
    broken = {"bet": 0.1, "stop": 0.1, "invalid": 0.8}
    rows = found(judge(simulate(planted(rates=broken), 3), None, KEPT, params()))
    assert rows[5, "risky", "invalid"]["effect"] > 0.2
    assert "raises invalid answers" in rows[5, "risky", "invalid"]["label"]


def test_small_effects_are_no_discoveries_however_sure():
    slightly = {"bet": 0.42, "stop": 0.38, "invalid": 0.2}
    trials = simulate(planted(rates=slightly), 5, candidates=6, n=1500)
    assert len(judge(trials, None, KEPT, params(min_effect=0)).verdict) > 0
    assert len(judge(trials, None, KEPT, params(min_effect=0.1)).verdict) == 0


def test_an_effect_that_is_gone_on_held_out_seeds_is_not_confirmed():
    verdict = judge(simulate(planted(), 1), simulate(null, 1, phase="confirmation"), KEPT, params())
    assert {r["confirmed"] for r in found(verdict).values()} == {False}
    assert {f["confirmed"] for f in verdict.findings["families"].values()} == {0}


def test_confirmation_needs_the_same_sign():
    reverse = {"bet": 0.95, "stop": 0.0, "invalid": 0.05}
    again = simulate(planted(rates=reverse), 1, phase="confirmation", n=200)
    verdict = judge(simulate(planted(), 1), again, KEPT, params())
    for row in found(verdict).values():
        if row["choice"] != "invalid":
            assert row["confirmation_effect"] * row["effect"] < 0
            assert row["confirmation_direction"] == np.sign(row["effect"])
            assert row["confirmation_p"] > 0.99
            assert not row["confirmed"]


def test_confirmation_family_is_the_repeated_discoveries():
    verdict = judge(simulate(planted(), 1), simulate(planted(), 1, phase="confirmation"), KEPT, params())
    confirmation = verdict.effects.filter(pc.equal(verdict.effects["phase"], "confirmation"))
    with_q = confirmation.filter(pc.is_valid(confirmation["q"]))
    families = verdict.findings["families"]
    assert len(with_q) == len(verdict.verdict) == sum(f["confirmation_tests"] for f in families.values())
    assert len(confirmation) > len(with_q)
    assert with_q["family"].to_pylist().count("primary") == families["primary"]["confirmation_tests"] == 1


def test_features_that_were_not_repeated_are_neither_confirmed_nor_refuted():
    trials = simulate(planted(), 1, phase="confirmation", candidates=3)
    assert {r["confirmed"] for r in found(judge(simulate(planted(), 1), trials, KEPT, params())).values()} == {None}


def test_reconstruct_mode_compares_with_the_layers_reconstruction():
    def rates(prompt, arm, candidate, value):
        return BASE if arm == "baseline" else STOPS  # all that the SAE does is done by reconstruction

    effects = judge(simulate(rates, 6, n=200, n_baseline=200), None, KEPT, params(mode="reconstruct")).effects
    assert "high_vs_baseline" not in effects["contrast"].to_pylist()
    against = effects.filter(pc.equal(effects["contrast"], "high_vs_reconstruction"))
    assert len(against) == 8 * 2 * 3
    assert pc.min(against["q"]).as_py() > 0.05


def test_effects_count_every_trial_and_equal_a_naive_loop():
    trials = simulate(planted(), 7, n=17, n_baseline=41)
    effects = measure_effects(trials, "discovery", PROMPTS, OUTCOMES, LOW, HIGH)
    assert effects.schema.equals(MEASURED.arrow)
    rows = trials.to_pylist()
    by_key = {(r["candidate"], r["prompt"], r["contrast"], r["choice"]): r for r in effects.to_pylist()}
    assert len(by_key) == 8 * 2 * 3 * 3
    for feature in edited_features(trials):
        for prompt in PROMPTS:
            for contrast, cells in contrasts(feature, prompt, LOW, HIGH, "keep_error").items():
                for choice in OUTCOMES:
                    ours = by_key[feature.candidate, prompt, contrast, choice]
                    for side, cell in zip("ab", cells, strict=True):
                        mine = [r for r in rows if all(r[k] == v for k, v in cell._asdict().items())]
                        assert ours[f"n_{side}"] == len(mine)
                        assert ours[f"k_{side}"] == sum(r["choice"] == choice for r in mine)
                    assert ours["effect"] == pytest.approx(ours["rate_a"] - ours["rate_b"])
    total = sum(by_key[0, "safe", "high_vs_low", choice]["rate_a"] for choice in OUTCOMES)
    assert total == pytest.approx(1)


def test_order_and_split_of_trials_do_not_matter():
    trials = simulate(planted(), 8)
    shuffled = trials.take(np.random.default_rng(0).permutation(len(trials)))
    split = pa.concat_tables([shuffled.slice(0, 100), shuffled.slice(100)])
    a, b = judge(trials, None, KEPT, params()), judge(split, None, KEPT, params())
    assert a.effects.equals(b.effects)
    assert a.verdict.equals(b.verdict)
    assert a.findings == b.findings


def test_a_study_without_features_has_an_empty_verdict():
    verdict = judge(simulate(null, 0, candidates=0), None, survivors(0), params())
    assert (len(verdict.effects), len(verdict.verdict), len(verdict.confirm)) == (0, 0, 0)
    assert {f["tests"] for f in verdict.findings["families"].values()} == {0}
    assert verdict.findings["detectable"] is None
    assert verdict.findings["strongest"] == []


def test_most_significant_features_are_confirmed_first_and_at_most_as_many_as_asked():
    def rates(prompt, arm, candidate, value):
        strength = {2: 0.4, 6: 0.65}.get(candidate, 0) if arm == "feature" and value == HIGH else 0
        return {"bet": 0.65 - 0.95 * strength, "stop": 0.3 + strength, "invalid": 0.05 - 0.05 * strength}

    trials = simulate(rates, 9, n=60)
    assert judge(trials, None, KEPT, params()).confirm["candidate"].to_pylist() == [6, 2]
    one = params().model_copy(update={"max_confirmed_features": 1})
    assert judge(trials, None, KEPT, one).confirm["candidate"].to_pylist() == [6]


@pytest.mark.parametrize("column", ["prompt", "choice"])
def test_trials_of_another_study_are_refused(column):
    trials = simulate(null, 0)
    index = trials.column_names.index(column)
    other = trials.set_column(index, column, pa.array(["trust", *trials[column].to_pylist()[1:]]))
    with pytest.raises(BadInput, match="'trust'"):
        judge(other, None, KEPT, params())


def test_the_planted_choices_are_those_of_the_parameters():
    assert (*CHOICES, "invalid") == OUTCOMES
