"""`python -m flows serve` on free ports, as a user starts and stops it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.server import answers, free_port
from tests.flows.processes import wait_until

REPOSITORY = Path(__file__).parents[2]


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


@pytest.mark.slow
def test_serve_starts_everything_and_stops_everything(tmp_path: Path) -> None:
    port, reports_port = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect")}
    report = tmp_path / "store" / "reports" / "a study" / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("<p>found it</p>")
    command = [sys.executable, "-m", "flows", "serve", "--port", str(port), "--reports-port", str(reports_port)]
    with (tmp_path / "log").open("w") as log:
        serving = subprocess.Popen(
            [*command, "--store", str(tmp_path / "store")], cwd=REPOSITORY, env=environment, stderr=log
        )
    try:
        log_text = (tmp_path / "log").read_text
        wait_until(lambda: "Ctrl-C" in log_text() or serving.poll() is not None, 120, "everything is served")
        assert serving.poll() is None, log_text()
        children = psutil.Process(serving.pid).children(recursive=True)
        api = f"http://127.0.0.1:{port}/api"
        deployments = ask(f"{api}/deployments/filter", {})
        names = sorted(deployment["name"] for deployment in deployments)
        assert names == ["gpu-host", "gpu-host", "local", "local", "moe-sweep"]
        assert {deployment["parameters"]["store"] for deployment in deployments} == {"runs/store"}
        wait_until(lambda: ask(f"{api}/work_pools/tomograph-process")["status"] == "READY", 30, "a worker is there")
        with urllib.request.urlopen(f"http://127.0.0.1:{reports_port}/a%20study/report.html", timeout=10) as page:
            assert page.read() == b"<p>found it</p>"
    finally:
        started = time.monotonic()
        serving.send_signal(signal.SIGINT)
        assert serving.wait(60) == 0
        print("stopped in", time.monotonic() - started)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not answers(api)
