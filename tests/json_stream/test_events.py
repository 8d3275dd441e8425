"""Reading on behind damage, whatever the layout: of lists of records, here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tasks.json_stream.events import Damage, Events, Loss

STARTS = {"id": '{"records":[', "name": ""}
RECORDS = [{"id": n, "words": ["a", "b"] * n, "share": float("nan") if n == 2 else n / 4} for n in range(5)]
TEXT = json.dumps({"name": "x", "records": RECORDS}).encode()


def read(text: bytes, size: int) -> tuple[dict[int, Any], list[Loss]]:
    """The records that are whole, by id, and what was lost."""
    pieces: Iterator[bytes] = iter([text[at : at + size] for at in range(0, len(text), size)])
    events = Events(lambda: next(pieces, b""), STARTS)
    found, lost = {}, []
    while True:
        try:
            while True:
                kind, content = next(events.stream)
                if (kind, content) == ("map_key", "records"):
                    assert next(events.stream)[0] == "start_array"
                    while (first := next(events.stream))[0] != "end_array":
                        record = events.value(first, allowed="id")
                        found.setdefault(record["id"], record)
        except Damage as damage:
            if damage.end:
                return found, lost
            key = events.resume()
            lost.append(Loss(damage.byte, events.byte, "in records", damage.problem))
            if key is None:
                return found, lost


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_whole_text(size: int) -> None:
    found, lost = read(TEXT, size)
    assert repr([*found.values()]) == repr(RECORDS)
    assert lost == []


@pytest.mark.parametrize("size", [7, 10_000])
@pytest.mark.parametrize("damage", [b"}}}}", b"\xff\xff", b"[1 2"])
def test_the_records_behind_damage_are_read(size: int, damage: bytes) -> None:
    at = TEXT.index(b'"words": ["a", "b", "a", "b"]') + 10
    found, lost = read(TEXT[:at] + damage + TEXT[at + len(damage) :], size)
    assert [*found] == [0, 1, 3, 4]
    loss = next(loss for loss in lost if loss.start <= at < loss.stop)
    assert loss.describe().startswith(f"not read after byte {loss.start}, up to byte {loss.stop}, in records: ")


def test_a_text_that_ends_early() -> None:
    found, _ = read(TEXT[: TEXT.index(b'{"id": 4') + 20], 50)
    assert [*found] == [0, 1, 2, 3]


def test_the_beginning_of_a_record_within_another_is_damage() -> None:
    text = TEXT.replace(b'"words": ["a", "b"]', b'"words": [{"x": 1', 1)
    found, lost = read(text, 10_000)
    assert [*found] == [0, 2, 3, 4]
    assert any("'id' is not expected here" in loss.problem for loss in lost)
