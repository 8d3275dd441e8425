"""NaN and infinities in JSON, put in a form that a parser accepts."""

from __future__ import annotations

import json
import math

import pytest

from tasks.json_stream.nonfinite import STAND_INS, VALUES, StandIns


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 1000])
def test_stand_ins_do_not_depend_on_the_pieces(size: int) -> None:
    text = json.dumps(
        {
            "a": [math.nan, math.inf, -math.inf, "NaN", 'a"NaN\\'],
            "NaN": "\\\\",
            "b": {"c\\": math.nan, "d": "-Infinity"},
        }
    ).encode()
    stand_ins = StandIns()
    pieces = [stand_ins(text[i : i + size]) for i in range(0, len(text), size)]
    replaced = b"".join(pieces) + stand_ins(b"", last=True)
    assert len(replaced) == len(text)
    found = json.loads(replaced)
    assert [VALUES.get(value, value) for value in found["a"][1:3]] == [math.inf, -math.inf]
    assert math.isnan(VALUES[found["a"][0]])
    assert found["a"][3:] == ["NaN", 'a"NaN\\']
    assert found["NaN"] == "\\\\"
    assert (found["b"]["c\\"], found["b"]["d"]) == ("\x7f", "-Infinity")
    assert all(len(word) == len(stand_in) for word, stand_in in STAND_INS.items())
