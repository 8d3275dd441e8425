"""Findings in plain words."""

from __future__ import annotations

import pytest

from tasks.outliers.report.sentences import detail, model_headline, sweep_headline, sweep_lead
from tasks.report import numbers as fmt
from tests.outliers.report.pages import Report
from tests.outliers.report.worlds import BROKEN, NONE, SMALL, SWEEP, UNCHECKED


def plain(text: str) -> str:
    return text.replace(fmt.NBSP, " ")


def test_one_model(one: Report):
    [found] = one.data.models
    effect, random = (found.ablation.effect(c) for c in ("systematic", "random_systematic"))
    assert one.data.headline == "3 of 96 dimensions of SmolLM2-135M are systematic outliers."
    assert plain(one.data.lead) == (
        f"In a sequence they have outliers at {100 * found.counts.mean_layer_share:.0f} % of the watched points and at"
        f" {100 * found.counts.mean_position_share:.0f} % of the positions on average; the largest value,"
        f" {found.row.largest_magnitude:.1f}, is in dimension 17. Setting them to zero multiplies perplexity by"
        f" {effect.ratio:.1f} (95 % interval {effect.ratio_low:.1f} to {effect.ratio_high:.1f}), as many random ones by"
        f" {random.ratio:.3f}."
    )


@pytest.mark.parametrize(
    ("world", "words"),
    [
        (
            BROKEN,
            ("In a sequence it has outliers", "Setting it to zero multiplies perplexity by 1.00", "a random one by"),
        ),
        (NONE, ("No value reaches the threshold.",)),
        (UNCHECKED, ("In a sequence it has outliers",)),
    ],
)
def test_other_models(sweep: Report, world, words):
    text = plain(sweep.data.models[SWEEP.index(world)].detail)
    assert all(part in text for part in words)
    assert ("perplexity" in text) == (world is BROKEN)


def test_what_comes_nearest_to_a_massive_activation(sweep: Report, near: Report):
    [found] = near.data.models
    nearest = found.nearest_massive
    assert (nearest.site, nearest.dim) == ("norms", 7)
    at = "the first position" if nearest.position == 0 else f"position {nearest.position}"
    words = (
        f"No activation is massive; nearest is dimension 7 in what enters attention and FFN ({nearest.point}), which"
        f" reaches {fmt.magnitude(abs(nearest.value))} at {at} of sequence {nearest.sequence},"
        f" {fmt.magnitude(nearest.ratio)} times its token’s median magnitude."
    )
    assert plain(found.detail).endswith(words)
    assert words in plain(near.html)
    assert "massive" not in sweep.data.models[SWEEP.index(SMALL)].detail
    assert sweep.data.models[SWEEP.index(NONE)].nearest_massive is None


def test_headlines_by_number(sweep: Report):
    small, none, broken = (sweep.data.models[SWEEP.index(w)] for w in (SMALL, NONE, BROKEN))
    assert model_headline(none) == "None of the 96 dimensions of Quiet-360M is a systematic outlier."
    assert model_headline(broken).endswith("is a systematic outlier.")
    assert sweep_headline([none, none], []) == "None of the 2 models has a systematic outlier dimension."
    assert sweep_headline([small, none], []) == (
        "1 of 2 models have systematic outlier dimensions: 3 of 96 in SmolLM2-135M."
    )
    assert sweep_headline([small], []) == model_headline(small)
    assert sweep_headline([], sweep.data.failures) == "No model could be examined."
    assert sweep.data.headline == (
        "5 of 6 models have systematic outlier dimensions: from 1 of 96 in Unchecked-1B to 58 of 128 in Experts-47B."
    )


def test_what_zeroing_costs_over_models(sweep: Report):
    checked = [m for m in sweep.data.models if m.row.perplexity_ratio]
    text = plain(sweep_lead(sweep.data.models))
    assert f"in the {len(checked)} models where that was measured, most in SmolLM2-135M" in text
    assert plain(sweep_lead(checked[:1])).startswith(
        "Setting them to zero multiplies the perplexity of SmolLM2-135M by"
    )
    assert sweep_lead([sweep.data.models[SWEEP.index(NONE)]]) == ""


def test_random_dimensions_that_are_fewer(one: Report):
    [found] = one.data.models
    effects = [
        e.model_copy(update={"n_dims": 60 if e.condition == "systematic" else 36}) for e in found.ablation.effects
    ]
    fewer = found.model_copy(update={"ablation": found.ablation.model_copy(update={"effects": effects})})
    assert "all 36 others by" in detail(fewer)
