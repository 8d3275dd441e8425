"""The vLLM engine on SmolLM2: edited and captured generation against its own plain throughput, in one run.

Runs in the environment that holds vLLM (`make .venv-vllm/.ready`), in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.rows import row
from tests.benchmarks.workload import (
    VLLM_PYTHON,
    alternating,
    make_trials,
    median_ratio,
    random_bank,
    same_threads,
    trials_per_second,
)

N_LAYERS, D_MODEL = 30, 576
PROMPT = tuple(range(1000, 1150))
NEW_TOKENS = 30
TRIALS = 128
BATCH = 64
ROUNDS = 3
CAPTURED = range(2000)


def run() -> list[dict]:
    found, why = measured_in_its_environment()
    plain, edited, captured = found or (None, None, None)
    rows = [
        row("edited trials per second", edited and max(edited), "1/s", note=why),
        row("throughput of edited trials, of plain ones", _ratio(edited, plain), "share", at_least=0.85, note=why),
        row("throughput with 2,000 features captured", _ratio(captured, edited), "share", note=why),
    ]
    return [{**r, "name": f"vllm: {r['name']}"} for r in rows]


def _ratio(numerators: list[float] | None, denominators: list[float] | None) -> float | None:
    return median_ratio(numerators, denominators) if numerators and denominators else None


def measured_in_its_environment() -> tuple[list[list[float]] | None, str]:
    """(trials per second of plain, edited and captured rounds, "") or (None, why not)."""
    if not VLLM_PYTHON.exists():
        return None, f"not measured: {VLLM_PYTHON} is not there; run `make .venv-vllm/.ready`"
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [VLLM_PYTHON, "-m", "tests.benchmarks.bench_vllm", out.name]
        done = subprocess.run(command, capture_output=True, text=True, env=same_threads())
        if done.returncode:
            return None, f"not measured: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}"
        return json.loads(Path(out.name).read_text()), ""


def measure() -> list[list[float]]:
    from tasks.engines.interface import Capture, Edit
    from tasks.engines.vllm.engine import VllmEngine
    from tasks.models.load import local_folder
    from tasks.models.spec import ModelRef

    bank = random_bank(len(CAPTURED), N_LAYERS, D_MODEL)
    edits = [Edit(index, 4.0, "decode") for index in range(0, len(bank), 7)]
    trials = make_trials([PROMPT], edits, TRIALS, NEW_TOKENS)
    unedited = make_trials([PROMPT], None, TRIALS, NEW_TOKENS)
    capture = Capture(rows=CAPTURED, positions=("last", "final"))
    folder = local_folder(ModelRef(dtype="bfloat16"))
    length = len(PROMPT) + NEW_TOKENS
    settings = {"batch_size": BATCH, "end_tokens": (), "dtype": "bfloat16", "max_model_len": length}
    with VllmEngine(folder, bank, **settings) as engine:
        measures = [
            lambda: trials_per_second(engine, unedited),
            lambda: trials_per_second(engine, trials),
            lambda: trials_per_second(engine, trials, capture),
        ]
        alternating(1, *measures)  # warm up
        return alternating(ROUNDS, *measures)


if __name__ == "__main__":
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(json.dumps(measure()))
    else:
        for result in run():
            print(result)
