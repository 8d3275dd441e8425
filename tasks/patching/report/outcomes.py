"""Choices in every arm, counted over all trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from tasks.artifacts.shard import Shard
from tasks.patching.report.data import ChoiceCell, Rate
from tasks.patching.scenario import INVALID
from tasks.patching.spec import ARMS
from tasks.patching.tables import TRIALS
from tasks.report.tables import rows, tables

_COLUMNS = ("prompt", "arm", "layer", "choice")


def choice_cells(trials: Iterable[Shard], prompts: Sequence[str]) -> list[ChoiceCell]:
    """Counts by prompt and arm; reconstruction by layer too. Edited arms hold all features and values together."""
    totals: dict[tuple[str, str, int | None], dict[str, int]] = {}
    for table in tables(trials, TRIALS, _COLUMNS):
        counted = table.append_column("one", pa.array([1] * len(table), pa.int64())).group_by(list(_COLUMNS))
        for row in rows(counted.aggregate([("one", "sum")])):
            layer = row["layer"] if row["arm"] == "reconstruction" else None
            cell = totals.setdefault((row["prompt"], row["arm"], layer), {})
            cell[row["choice"]] = cell.get(row["choice"], 0) + row["one_sum"]
    found = [
        ChoiceCell(prompt=prompt, arm=arm, layer=layer, n=sum(c.values()), counts=dict(sorted(c.items())))
        for (prompt, arm, layer), c in totals.items()
    ]
    order = {prompt: i for i, prompt in enumerate(prompts)}
    return sorted(
        found, key=lambda c: (order.get(c.prompt, len(order)), ARMS.index(c.arm), -1 if c.layer is None else c.layer)
    )


def baseline_rates(cells: Iterable[ChoiceCell], choices: Sequence[str]) -> dict[tuple[str, str], Rate]:
    """Rate of each choice without an edit, by (prompt, choice)."""
    plain = [cell for cell in cells if cell.arm == "baseline"]
    return {(cell.prompt, c): Rate(n=cell.n, k=cell.counts.get(c, 0)) for cell in plain for c in choices}


def invalid_share(cells: Iterable[ChoiceCell]) -> float | None:
    """Share of invalid answers over the given cells; None without trials."""
    cells = list(cells)
    n = sum(cell.n for cell in cells)
    return sum(cell.counts.get(INVALID, 0) for cell in cells) / n if n else None
