"""Regular expressions and templates of a scenario: what is refused, and that reading ends."""

from __future__ import annotations

import threading
import time

import pytest

from tasks.errors import BadInput
from tasks.patching import patterns, templates
from tasks.patching.parser import Reader
from tasks.patching.scenario import Parser, Rule


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("A(", "not a regular expression"),
        ("(?<=a+)b", "not a regular expression"),
        ("(?R)", "not a regular expression"),
        ("[[:nope:]", "not a regular expression"),
        ("(?e)(?:foo){e<=3}", "not a regular expression"),
        ("(" * 3000, "not a regular expression"),
        ("a" * 5000, "5,000 characters"),
        ("a{1000000000}", "more than 1000 times"),
        ("(?:a{1,60000}){1,9}", "more than 1000 times"),
        ("(a|aa)+$", "takes exponential time, on 'a' times 100"),
        ("(?:b|bb)*c", "takes exponential time, on 'b' times 100"),
    ],
)
def test_patterns_that_are_refused(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match="regular expression") as refused:
        patterns.check(pattern)
    assert says in str(refused.value)


def test_patterns_are_read_as_python_reads_them() -> None:
    pattern = patterns.check(r"(?x) (?P<n> [0-9]++ ) (?! \s* x ) [^\S\n]* (?= $ | [.] )")
    found = patterns.match(pattern, "12 .", "f")
    assert found is not None
    assert found["n"] == "12"
    assert patterns.groups(pattern) == {"n"}
    assert patterns.match("BET", "bet 5", "f")
    assert patterns.match("bet", "a bet", "f") is None
    assert patterns.search("bet", "a bet", "f")


def test_a_pattern_that_is_slow_on_an_answer_is_named_and_lets_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "READ_SECONDS", 1.0)
    rule = Rule(name="slow", pattern="(?:ab|a|b)*$", choice="x")
    beats: list[float] = []
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            beats.append(time.monotonic())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(BadInput, match=r"takes more than 1 s to read a text of 81 characters") as refused:
            Reader(Parser(rules=[rule], lead="")).read("ab" * 40 + "?", {})
    finally:
        over.set()
        thread.join()
    assert refused.value.field == "scenario.parser.rules.slow.pattern"
    assert len(beats) >= 3


@pytest.mark.parametrize(
    "template",
    [
        "{x.__class__}",
        "{x[0]}",
        "{}",
        "{0}",
        "{x!r}",
        "{x:>9999999999}",
        "{x:.999999f}",
        "{x:{y}}",
        "{x",
        "x}",
        "{a b}",
    ],
)
def test_templates_that_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"placeholder|brace|[Ss]ingle|expected"):
        templates.check(template)


def test_templates_are_filled() -> None:
    assert (
        templates.fill("{{{name}}} has {n:,.1f} of {n:>6}", {"name": "Ann", "n": 1000}) == "{Ann} has 1,000.0 of   1000"
    )
    with pytest.raises(KeyError):
        templates.fill("{whom}", {"who": "Ann"})
    with pytest.raises(ValueError, match="format code"):
        templates.fill("{n:d}", {"n": "text"})
