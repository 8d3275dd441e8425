"""Findings in plain words, and an honest headline when there are none."""

from __future__ import annotations

import pytest

from tasks.patching.report.data import FamilyNumbers
from tasks.patching.report.sentences import finding_sentence, headline, what_to_change
from tasks.report import numbers as fmt
from tests.patching.report.samples import ESTIMATE, finding, numbers, screened


def test_sentence_has_what_how_much_how_sure_and_confirmation(report):
    sentence = finding_sentence(finding(), report.data.setup).replace(fmt.NBSP, " ")
    assert sentence == (
        "Setting feature L12/824 to its risky value instead of its safe value raises the share of “bet” on the “safe”"
        " prompt by 40.0 percentage points (95 % interval +20.0 to +55.0, q = 0.002 in the primary"
        " family; 20 of 30 against 8 of 30 trials). The exact screen predicted +38.0. That is more than a random"
        " direction does (+35.0 points, 95 % interval +10.0 to +60.0, q = 0.01)."
        " Confirmed on held-out seeds: +30.0 points (95 % interval +15.0 to +45.0,"
        " q = 0.001)."
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "unconfirmed"}, "Not confirmed on held-out seeds: +30.0 points"),
        ({"status": "untested", "confirmation": None}, "Not yet tested on held-out seeds."),
        ({"specific": False}, "It was not shown to be more than a random direction does (+35.0 points"),
        ({"specific": None, "beyond": None}, "It was not compared with a random direction."),
        (
            {"family": "secondary", "predicted": None},
            "in the secondary family; 20 of 30 against 8 of 30 trials). That is",
        ),
        ({"estimate": ESTIMATE.model_copy(update={"effect": -0.4})}, "lowers the share"),
    ],
)
def test_sentence_says_what_is_not_so(report, changes, words):
    assert words in finding_sentence(finding(**changes), report.data.setup).replace(fmt.NBSP, " ")


@pytest.mark.parametrize(
    ("found", "given", "text"),
    [
        (
            [],
            {},
            "No feature was found to change the model’s choice (8 primary tests, 136 secondary; false discovery rate"
            " 5 % in each family).",
        ),
        (
            [finding()],
            {},
            "One feature causally changed the model’s choice as the screen predicted, confirmed on held-out seeds.",
        ),
        (
            [finding(), finding(prompt="risky", family="secondary"), finding(4, status="unconfirmed")],
            {},
            "One feature causally changed the model’s choice as the screen predicted, confirmed on held-out seeds; one"
            " feature did not hold.",
        ),
        (
            [finding(), finding(4)],
            {"confirmation_ran": False},
            "Two features changed the model’s choice as the screen predicted; not yet tested on held-out seeds.",
        ),
        (
            [finding(status="unconfirmed")],
            {},
            "One feature seemed to change the model’s choice as the screen predicted, but it was not confirmed on"
            " held-out seeds.",
        ),
        (
            [finding(status="unconfirmed"), finding(4, status="unconfirmed")],
            {},
            "Two features seemed to change the model’s choice as the screen predicted, but none was confirmed on"
            " held-out seeds.",
        ),
        (
            [finding(), finding(4, family="secondary"), finding(5, family="secondary", status="unconfirmed")],
            {},
            "One feature causally changed the model’s choice as the screen predicted, confirmed on held-out seeds. Two"
            " features more passed a secondary test alone, 1 of them confirmed on held-out seeds.",
        ),
        (
            [finding(4, family="secondary")],
            {},
            "No feature was found to change the model’s choice as the screen predicted. One feature passed a secondary"
            " test alone, confirmed on held-out seeds.",
        ),
    ],
)
def test_headline(found, given, text):
    assert headline(found, numbers(**given), screened(), 0.05).replace(fmt.NBSP, " ") == text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {},
            "None of 48 features screened moves the choice by 8.0 points, so none was sampled; the largest exact"
            " effect is that of L14/123: +2.1 points in “bet” on the “safe” prompt.",
        ),
        (
            {"candidates": 1, "effect": -0.07},
            "The one feature screened does not move the choice by 8.0 points, so none was sampled; the largest exact"
            " effect is that of L14/123: −7.0 points in “bet” on the “safe” prompt.",
        ),
        (
            {"id": None, "effect": None, "prompt": None, "choice": None},
            "None of 48 features screened moves the model’s choice at all, so none was sampled.",
        ),
    ],
)
def test_a_screen_without_survivors_is_a_result(given, text):
    none = FamilyNumbers(tests=0, discoveries=0, confirmed=0)
    untested = numbers(primary=none, secondary=none)
    assert headline([], untested, screened(**given), 0.05).replace(fmt.NBSP, " ") == text


def test_what_to_change_names_the_parameters():
    first, second, _ = what_to_change(screened())
    assert first.startswith("Lower selection.min_effect (8.0 points were asked for)")
    assert "contrast.top_k_per_layer" in second
    assert "min_effect" not in " ".join(what_to_change(screened(id=None, effect=None)))
