"""A result of a benchmark, and the table of all. Imports nothing heavy: what is measured may be a program's start."""

from __future__ import annotations

from typing import Any


def row(
    name: str,
    value: float | None,
    unit: str,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
    judged: bool = True,
) -> dict[str, Any]:
    """A result with at most one bound; `judged` False names the target and judges nothing (another machine's)."""
    target, holds = None, None
    if at_least is not None:
        target, holds = f">= {at_least:g}", value is not None and value >= at_least
    if at_most is not None:
        target, holds = f"<= {at_most:g}", value is not None and value <= at_most
    if value is None or not judged:
        holds = None
    value = None if value is None else float(f"{value:.4g}")
    return {"name": name, "value": value, "unit": unit, "target": target, "holds": holds, "note": note}


def table(rows: list[dict[str, Any]]) -> str:
    mark = {True: "holds", False: "MISSED", None: ""}
    lines = ["| benchmark | value | unit | target | | note |", "|---|---:|---|---|---|---|"]
    for row in rows:
        value = "" if row["value"] is None else f"{row['value']:g}"
        cells = (row["name"], value, row["unit"], row["target"] or "", mark[row["holds"]], row["note"])
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"
