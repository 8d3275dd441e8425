"""Responses to the same prompt without an edit, at the low and at the high value of one feature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from tasks.artifacts.shard import Shard
from tasks.patching.cells import baseline_condition, patched_condition
from tasks.patching.report.data import Example, ExampleColumn, ExampleSet, FeatureId
from tasks.patching.tables import TRIALS
from tasks.report.tables import Row, rows, tables

LENGTH = 600
_COLUMNS = (
    "prompt", "condition", "arm", "candidate", "value", "trial", "seed", "response", "choice", "amount", "parse_rule",
)  # fmt: skip
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}


def example_sets(
    trials: Iterable[Shard],
    chosen: Sequence[tuple[FeatureId, str]],
    low: str,
    high: str,
    per_condition: int,
) -> list[ExampleSet]:
    """For each (feature, prompt): the first `per_condition` trials by number, whatever their outcome."""
    found = _rows(trials, {id.candidate for id, _ in chosen}, per_condition)
    sets = []
    for id, prompt in chosen:
        conditions = (
            ("No edit", baseline_condition(prompt), "baseline", None),
            (f"At its {low} value", patched_condition(prompt, low), "feature", id.candidate),
            (f"At its {high} value", patched_condition(prompt, high), "feature", id.candidate),
        )
        columns = []
        for title, condition, arm, candidate in conditions:
            mine = [
                r
                for r in found
                if (r["prompt"], r["condition"], r["arm"], r["candidate"]) == (prompt, condition, arm, candidate)
            ]
            mine.sort(key=lambda r: r["trial"])
            value = mine[0]["value"] if mine else None
            items = [_example(row) for row in mine[:per_condition]]
            columns.append(ExampleColumn(title=title, condition=condition, value=value, items=items))
        sets.append(ExampleSet(id=id, prompt=prompt, columns=columns))
    return sets


def visible(text: str) -> str:
    """Control characters as their pictures, so that they neither vanish nor break the page."""
    return text.translate(_CONTROL_PICTURES)


def _rows(trials: Iterable[Shard], candidates: set[int], per_condition: int) -> list[Row]:
    """Rows of the first trials of baselines and of the given candidates' feature arms."""
    found = []
    for table in tables(trials, TRIALS, _COLUMNS):
        numbers = pa.array(sorted(candidates), table.schema.field("candidate").type)
        edited = pc.and_(pc.equal(table["arm"], "feature"), pc.is_in(table["candidate"], value_set=numbers))
        wanted = pc.and_(
            pc.less(table["trial"], per_condition), pc.or_kleene(pc.equal(table["arm"], "baseline"), edited)
        )
        found += rows(table.filter(wanted))
    return found


def _example(row: Row) -> Example:
    response = row["response"]
    return Example(
        trial=row["trial"],
        seed=row["seed"],
        response=visible(response[:LENGTH]),
        cut=max(0, len(response) - LENGTH),
        choice=row["choice"],
        amount=row["amount"],
        rule=row["parse_rule"],
    )
