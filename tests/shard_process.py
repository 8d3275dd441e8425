"""``python -m tasks run`` as the launchers call it, for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.manifest import MANIFEST
from tasks.artifacts.store import Store
from tasks.spec import TaskSpec

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """A shard's process that has ended."""

    code: int
    events: list[dict[str, Any]]
    """Its standard output, every line of which is JSON."""
    stderr: str

    @property
    def failure(self) -> dict[str, Any]:
        (failed,) = (event for event in self.events if event["event"] == "failed")
        return failed


def start(spec_url: str, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Start the shard; endpoint, credentials and plug-ins come from this process's environment."""
    command = [sys.executable, "-m", "tasks", "run", spec_url, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=stdin, stdout=pipe, stderr=pipe, text=True, cwd=REPOSITORY)


def wait(process: subprocess.Popen[str], timeout: float = 60) -> Ended:
    stdout, stderr = process.communicate(timeout=timeout)
    return Ended(process.returncode, [json.loads(line) for line in stdout.splitlines()], stderr)


def run(spec_url: str, *arguments: str) -> Ended:
    return wait(start(spec_url, *arguments))


def result_bytes(store: Store, spec: TaskSpec) -> dict[str, bytes | dict[str, Any]]:
    """All that the shard's manifest vouches for, and the manifest without its account of the run."""
    manifest = store.read_json(f"{spec.path}/{MANIFEST}")
    del manifest["run"]
    paths = [ref["path"] for output in manifest["outputs"].values() for ref in output["objects"]]
    return {MANIFEST: manifest} | {path: store.read_bytes(f"{spec.path}/{path}") for path in paths}
