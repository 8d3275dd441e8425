"""Everything for working in the Prefect UI on this machine: server, work pool, deployments, worker, reports."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from flows.dead_runs import close_dead_runs
from flows.reports import Published
from flows.server import HOST, NO_TELEMETRY, READY_SECONDS, ServerFailed, answers, check_answers
from tasks.errors import BadInput

REPOSITORY = Path(__file__).parents[1]
STOP_SECONDS = 20
WATCH_SECONDS = 0.5
POOL = "tomograph-process"


def serve(console: Console, port: int, reports_port: int, reports: Path) -> None:
    """Serve until interrupted, then end everything that was started here.

    Raises:
        ServerFailed: a part did not start, or ended by itself.
    """
    api_url = os.environ.get("PREFECT_API_URL", f"http://{HOST}:{port}/api")
    os.environ.update(NO_TELEMETRY, PREFECT_API_URL=api_url, PWD=str(REPOSITORY))
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        parts: list[subprocess.Popen[bytes]] = []
        if not answers(api_url):
            if urlsplit(api_url).netloc != f"{HOST}:{port}":
                check_answers(api_url)
            console.print("starting the Prefect server ...")
            parts.append(stack.enter_context(_part("server", "start", "--host", HOST, "--port", str(port))))
            _wait_until_ready(parts[0], api_url)
        reports_url = stack.enter_context(_served(reports, reports_port))
        os.environ.update(Published(reports_url, reports).as_environment())
        console.print("deploying the flows of prefect.yaml ...")
        _deploy(console)
        asyncio.run(close_dead_runs())
        parts.append(stack.enter_context(_part("worker", "start", "--pool", POOL)))
        console.print(f"[bold]{api_url.removesuffix('/api')}/deployments[/]  run a flow from its form")
        console.print(f"[bold]{reports_url}[/]  reports ({reports})")
        console.print("Ctrl-C stops all of it.")
        with contextlib.suppress(KeyboardInterrupt):
            _watch(parts)
            raise ServerFailed("the Prefect server or its worker ended; its last lines are above")
        console.print("stopping ...")


@contextlib.contextmanager
def _part(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A long-running ``prefect`` command, ended on exit: a session of its own keeps Ctrl-C from it till then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        stdout=subprocess.DEVNULL,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _deploy(console: Console) -> None:
    from flows.deploy import deploy  # now that Prefect, which reads its settings when imported, can know the server

    asyncio.run(deploy(console, [POOL]))


def _wait_until_ready(server: subprocess.Popen[bytes], api_url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not answers(api_url):
        if server.poll() is not None or time.monotonic() > deadline:
            raise ServerFailed(f"the Prefect server does not answer at {api_url}; is the port free?")
        time.sleep(WATCH_SECONDS)


def _watch(parts: list[subprocess.Popen[bytes]]) -> None:
    """Return when one of ``parts`` has ended."""
    while all(part.poll() is None for part in parts):
        time.sleep(WATCH_SECONDS)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def _served(folder: Path, port: int) -> Iterator[str]:
    """Serve ``folder`` to this machine's browsers."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        server = ThreadingHTTPServer((HOST, port), functools.partial(_Quiet, directory=str(folder)))
    except OSError as error:
        raise BadInput("--reports-port", port, str(error.strerror), "choose another one") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{HOST}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
