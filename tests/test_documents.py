"""YAML and JSON of users: what is read, and what is refused with a place and a reason."""

from __future__ import annotations

import time

import pytest

from tasks.documents import MOST_BYTES, parse_json, parse_yaml
from tasks.errors import BadInput, shown

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 13)
)


def test_yaml_is_that_of_the_core_schema() -> None:
    text = "a: yes\nb: 1e-3\nc: 010\nd: 0x1F\ne: 12:30\nf: 2001-01-01\ng:\nh: [true, ~, -2.5, 'x']\n"
    assert parse_yaml(text, "--config", "f.yaml") == {
        "a": "yes",
        "b": 0.001,
        "c": 10,
        "d": 31,
        "e": "12:30",
        "f": "2001-01-01",
        "g": None,
        "h": [True, None, -2.5, "x"],
    }
    assert parse_yaml(b"\xef\xbb\xbf# nothing\n", "--config", "f.yaml") is None
    merged = parse_yaml("a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}", "--config", "f.yaml")
    assert merged["b"] == {"x": 2, "y": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: key 'a' occurs twice"),
        ("a: {b: 1, b: 1}", "line 1, column 11: key 'b' occurs twice"),
        ("1: a\n0x1: b", "key 1 occurs twice"),
        ("a: [", "line 2, column 1"),
        ("[" * 100_000, "nested more than 64 deep"),
        ("\n".join(" " * n + "a:" for n in range(100)), "line 65: nested more than 64 deep"),
        (BOMB, "its aliases expand 37 nodes to 1,000,000,000,000 or more"),
        ("&a [*a]", "an alias inside of what it stands for"),
        ("a: *b", "undefined alias"),
        ("a: " + "1" * 5000, "is no int"),
        ("!!float x", "'x' is no float"),
        ("a: !!timestamp 2001-13-45", "could not determine a constructor"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("{[1]: 2}", "a key is no plain value"),
        ("a: 1\n---\nb: 2", "another document"),
        ("\x00", "control characters are not allowed"),
        (b"\xff\xfe\x00\x01", "'utf-8' codec can't decode"),
        (b" " * (MOST_BYTES + 1), "more than 16 MiB"),
    ],
)
def test_yaml_that_is_refused(text: str | bytes, says: str) -> None:
    started = time.monotonic()
    with pytest.raises(BadInput) as refused:
        parse_yaml(text, "--config", "f.yaml")
    assert time.monotonic() - started < 5
    assert says in str(refused.value)
    assert len(str(refused.value)) < 1500
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[NaN]", "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": 1, "a": 2}', "key 'a' occurs twice"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "5000 digits"),
        ("{oops}", "line 1 column 2"),
        (b"\xff", "this is no UTF-8 text"),
    ],
)
def test_json_that_is_refused(text: str | bytes, says: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_json(text, "--models", "it")
    assert says in str(refused.value)


def test_values_in_messages_are_short_whatever_they_are() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    for value in ("x" * 10**8, b"x" * 10**7, 10**5000, nested, {"a": list(range(10**5))}):
        assert len(shown(value)) <= 203
