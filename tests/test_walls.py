"""The two walls of the house: flows import no tensor library, tasks import no Prefect."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
TASKS = REPOSITORY / "tasks"

# vLLM has an environment of its own; what needs it is imported where it is.
# Entry points run on import of `__main__` guards only, so every module can be imported.
PROGRAM = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
assert names, "no modules found"
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in sys.argv[3].split(","):
            raise
loaded = {name.split(".")[0] for name in sys.modules} | set(sys.modules)
print(*sorted(loaded & set(sys.argv[2].split(","))))
"""

HEAVY = ("torch", "transformers", "vllm", "safetensors.torch", "peft", "jax", "tensorflow")
ORCHESTRATION = ("prefect", "flows")
ELSEWHERE = ("triton", "vllm")
"""What the tests' own environment need not have."""


def forbidden_after_importing(package: str, forbidden: tuple[str, ...]) -> list[str]:
    """Which of ``forbidden`` a fresh interpreter has loaded once it has imported all of ``package``."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, package, ",".join(forbidden), ",".join(ELSEWHERE)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_flows_import_no_tensor_library() -> None:
    assert forbidden_after_importing("flows", HEAVY) == []


def test_tasks_import_no_orchestration() -> None:
    assert forbidden_after_importing("tasks", ORCHESTRATION) == []


def imported(module: Path) -> set[str]:
    """Dotted names of all that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_no_room_leans_on_the_room_of_another_job() -> None:
    """A job is a room with a report of its own; what two jobs need is in a shared room."""
    jobs = {report.parent.name for report in TASKS.glob("*/report") if any(report.glob("*.py"))}
    assert {"patching", "outliers"} <= jobs
    for module in TASKS.rglob("*.py"):
        own = module.relative_to(TASKS).parts[0]
        rooms = {name.split(".")[1] for name in imported(module) if name.startswith("tasks.")}
        assert rooms & jobs <= {own}, module


LIGHT = (
    "tasks.report.summary",
    "tasks.spec",
    "tasks.registry",
    "tasks.artifacts.catalog",
    "tasks.artifacts.shard",
    "tasks.models.fingerprint",
    "tasks.patching.identify",
    "tasks.places.resolve",
    "tasks.text.prompts",
    "tasks.text.prose",
    "tasks.text.sequences",
)


@pytest.mark.parametrize("module", LIGHT)
def test_what_flows_lean_on_and_what_runs_at_every_start_is_light(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.split() == []


def test_kinds_are_declared_without_their_code() -> None:
    program = f"import sys; from tasks.registry import kinds; kinds(); print(*set({HEAVY!r}) & set(sys.modules))"
    environment = {name: value for name, value in os.environ.items() if name != "TOMOGRAPH_PLUGINS"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.slow
def test_a_flow_is_imported_in_little_more_than_prefect_takes() -> None:
    """Processor time of the same interpreter, best of three: about a second in all where nothing else runs."""
    program = """
import time, prefect, prefect.client.orchestration
prefects = time.process_time()
import flows.patching
print((time.process_time() - prefects) / prefects)
"""
    shares = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True
        )
        shares.append(float(done.stdout))
    assert min(shares) < 0.7
