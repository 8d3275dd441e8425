"""Studies as processes that are killed, and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from flows.cli import parse
from tests.flows.in_process import shards_in_process
from tests.flows.processes import labelled, wait_until


def start(flow: str, study_file: Path, store: Path | str, output: IO[str] | int) -> subprocess.Popen:
    command = [sys.executable, "-m", "flows", flow, "--config", str(study_file), "--store", str(store)]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finish(flow: str, study_file: Path, store: Path | str) -> None:
    process = start(flow, study_file, store, subprocess.PIPE)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


def finish_here(flow: Any, study_file: Path, store: Path | str) -> None:
    """Run the study with its shards in threads of this process; its bytes are those that processes give."""
    with shards_in_process():
        asyncio.run(flow(**parse(flow, ["--config", str(study_file), "--store", str(store)], "python -m flows")))


def results(store: Path) -> dict[str, bytes]:
    """Everything that a study leaves behind, without what says when and where it ran.

    That is the `run` part of manifests and the report's block of the same name; the report's own object is named
    after its bytes, so its manifest and name are left out and its page is compared from `reports/`.
    """
    found = {}
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        name, data = str(path.relative_to(store)), path.read_bytes()
        if ".report/" in name and ("report" in path.name or path.name == "manifest.json"):
            continue
        if path.name == "manifest.json":
            manifest = json.loads(data)
            manifest.pop("run")
            data = json.dumps(manifest, sort_keys=True).encode()
        if path.name == "report.html":
            data = re.sub(rb'<script type="application/json" id="run">.*?</script>', b"", data, flags=re.DOTALL)
        found[name] = data
    return found


def files(store: Path) -> int:
    return sum(path.is_file() for path in store.rglob("*"))


def run_until_killed(flow: str, study_file: Path, store: Path, rng: random.Random, whom: str) -> bool:
    """Start the study, and kill the flow or one of its shards soon after a few more files have appeared.

    True if something was killed before the study came to its end.
    """
    log = store.with_suffix(".log").open("w")
    process = start(flow, study_file, store, log)
    enough = files(store) + rng.randint(1, 4)
    while process.poll() is None and files(store) < enough:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.6))
    if process.poll() is not None:
        return False
    if whom == "shard":
        for shard in labelled(str(store))[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(shard.pid, signal.SIGKILL)
        time.sleep(rng.uniform(0, 0.3))
    process.kill()
    process.wait()
    wait_until(lambda: not labelled(str(store)), 20, "shards of a killed flow end")
    return True


def killed_and_undisturbed(
    flow: Any, study_file: Path, folder: Path, kills: int, seed: int
) -> tuple[int, dict[str, bytes], dict[str, bytes]]:
    """Run a study to its end without and with kills: how many there were, and the results of both.

    Flow and shard are killed in turn. The stores are ``undisturbed`` and ``disturbed`` in ``folder``.
    """
    undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
    finish_here(flow, study_file, undisturbed)
    rng = random.Random(seed)
    whom = ["shard" if number % 2 else "flow" for number in range(kills)]
    killed = [run_until_killed(flow.name, study_file, disturbed, rng, victim) for victim in whom]
    finish(flow.name, study_file, disturbed)
    return sum(killed), results(undisturbed), results(disturbed)
