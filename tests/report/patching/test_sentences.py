"""Findings in plain words, and an honest headline when there are none."""

from __future__ import annotations

import pytest

from tasks.report import numbers as fmt
from tasks.report.patching.sentences import finding_sentence, headline
from tests.report.patching.samples import ESTIMATE, finding, numbers


def test_sentence_has_what_how_much_how_sure_and_confirmation(report):
    sentence = finding_sentence(finding(), report.data.setup).replace(fmt.NBSP, " ")
    assert sentence == (
        "Setting feature L12/824 to its risky value instead of its safe value raises the share of “bet” on the “safe”"
        " prompt by 40.0 percentage points (95 % interval +20.0 to +55.0, q = 0.002; 20 of 30 against 8 of 30 trials)."
        " It differs from a random direction. Confirmed on held-out seeds: +30.0 points (95 % interval +15.0 to +45.0,"
        " q = 0.001)."
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "unconfirmed"}, "Not confirmed on held-out seeds: +30.0 points"),
        ({"status": "untested", "confirmation": None}, "Not yet tested on held-out seeds."),
        ({"specific": False}, "It was not shown to differ from a random direction."),
        ({"specific": None}, "It was not compared with a random direction."),
        ({"estimate": ESTIMATE.model_copy(update={"effect": -0.4})}, "lowers the share"),
    ],
)
def test_sentence_says_what_is_not_so(report, changes, words):
    assert words in finding_sentence(finding(**changes), report.data.setup)


@pytest.mark.parametrize(
    ("found", "given", "text"),
    [
        ([], {"tests": 0}, "No feature was sampled, so this study shows no causal effect."),
        ([], {}, "No feature was found to change the model’s choice (240 tests, false discovery rate 5 %)."),
        (
            [finding()],
            {},
            "One feature causally changed the model’s choice, confirmed on held-out seeds.",
        ),
        (
            [finding(), finding(prompt="risky"), finding(4, status="unconfirmed")],
            {},
            "One feature causally changed the model’s choice, confirmed on held-out seeds; one feature did not hold.",
        ),
        (
            [finding(), finding(4)],
            {"confirmation_ran": False},
            "Two features changed the model’s choice; not yet tested on held-out seeds.",
        ),
        (
            [finding(status="unconfirmed")],
            {},
            "One feature seemed to change the model’s choice, but it was not confirmed on held-out seeds.",
        ),
        (
            [finding(status="unconfirmed"), finding(4, status="unconfirmed")],
            {},
            "Two features seemed to change the model’s choice, but none was confirmed on held-out seeds.",
        ),
    ],
)
def test_headline(found, given, text):
    assert headline(found, numbers(**given), 0.05).replace(fmt.NBSP, " ") == text
