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


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.0, "0"),
        (6.25, "6.25"),
        (41.26, "41.3"),
        (9.999, "10.0"),
        (2546.8, "2,550"),
        (-458.6, "−459"),
        (15_300_000.0, "1.5 × 10⁷"),
        (0.012, "0.01"),
        (0.004, "0.004"),
        (2e-5, "2.0 × 10⁻⁵"),
        (None, "–"),
        (math.inf, "–"),
    ],
)
def test_magnitude(x, text):
    assert plain(fmt.magnitude(x)) == text


def test_factors():
    assert fmt.ratio(1.0042) == "1.004"
    assert fmt.ratio(0.95) == "0.950"
    assert fmt.ratio(41.26) == "41.3"
    assert plain(fmt.ratios(0.9999, 3.333)) == "1.000 to 3.33"
    assert fmt.ratios(None, 2) == "–"


@pytest.mark.parametrize(
    ("n", "text"),
    [(134_515_008, "135 M"), (6.7e9, "6.7 B"), (999_600_000, "1 B"), (1.2e12, "1.2 T"), (512, "512"), (None, "–")],
)
def test_scaled(n, text):
    assert plain(fmt.scaled(n)) == text


def test_means_and_lists():
    assert [fmt.mean(x) for x in (3.0, 2.75, 1035.4, None)] == ["3", "2.8", "1,035.4", "–"]
    assert fmt.listed(["a", "b", "c"], 2) == "a, b and 1 more"
    assert fmt.listed(["a"]) == "a"
    assert fmt.some(1, "dog", "dogs") == "1 dog"
    assert fmt.some(0, "dog", "dogs") == "no dogs"
    assert fmt.some(1200, "dog", "dogs") == "1,200 dogs"
