"""Run every benchmark of this folder: `python -m tests.benchmarks [name ...]`.

Writes bench/results.json, a list of {name, value, unit, target, holds}, and bench/results.md, the same as a table.
A benchmark is a module `bench_*.py` with a function `run() -> list of such rows`; its targets are ratios of things
measured side by side in one run. Exit status 1 when a target does not hold.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
OUT = Path("bench")


def main(names: list[str]) -> int:
    modules = sorted(path.stem for path in FOLDER.glob("bench_*.py"))
    chosen = [m for m in modules if not names or m.removeprefix("bench_") in names]
    unknown = set(names) - {m.removeprefix("bench_") for m in modules}
    if unknown:
        print(f"unknown: {sorted(unknown)}; known: {[m.removeprefix('bench_') for m in modules]}", file=sys.stderr)
        return 2
    rows = []
    for module in chosen:
        print(f"{module} ...", flush=True)
        rows += importlib.import_module(f"tests.benchmarks.{module}").run()
    OUT.mkdir(exist_ok=True)
    (OUT / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    text = table(rows)
    (OUT / "results.md").write_text(f"{machine()}\n\n{text}")
    print(f"\n{machine()}\n{text}")
    return 0 if all(row["holds"] is not False for row in rows) else 1


def table(rows: list[dict]) -> str:
    mark = {True: "holds", False: "MISSED", None: ""}
    lines = ["| benchmark | value | unit | target | |", "|---|---:|---|---|---|"]
    for row in rows:
        target = "" if row["target"] is None else row["target"]
        lines.append(f"| {row['name']} | {row['value']:g} | {row['unit']} | {target} | {mark[row['holds']]} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    import torch
    import transformers

    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
