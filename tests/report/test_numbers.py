"""Numbers as text."""

from __future__ import annotations

import math

import pytest

from tasks.report import numbers as fmt


def plain(text: str) -> str:
    return text.replace(fmt.NBSP, " ")


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0, "0"),
        (3.14e-6, "3.1 × 10⁻⁶"),
        (9.99e-4, "1.0 × 10⁻³"),
        (0.001, "0.001"),
        (0.0312, "0.031"),
        (0.994, "0.99"),
        (0.999, "1"),
        (1.0, "1"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_probability(p, text):
    assert plain(fmt.probability(p)) == text


@pytest.mark.parametrize(
    ("effect", "text"),
    [(0.425, "+42.5"), (-0.25, "−25.0"), (0.0, "0.0"), (-0.0001, "0.0"), (0.0001, "0.0"), (None, "–")],
)
def test_points(effect, text):
    assert fmt.points(effect) == text


def test_points_without_sign():
    assert fmt.points(-0.25, signed=False) == "25.0"


def test_interval():
    assert plain(fmt.interval(-0.05, 0.1)) == "−5.0 to +10.0"
    assert fmt.interval(None, 0.1) == "–"


def test_percent_and_level():
    assert plain(fmt.percent(0.076, 1)) == "7.6 %"
    assert fmt.percent(None) == "–"
    assert plain(fmt.level(0.05)) == "95 %"
    assert plain(fmt.level(0.001)) == "99.9 %"


def test_counts_and_decimals():
    assert fmt.count(1234567) == "1,234,567"
    assert fmt.of(1200, 4000) == "1,200 of 4,000"
    assert fmt.decimal(-0.012345) == "−0.0123"
    assert fmt.decimal(200.0, 6) == "200"
