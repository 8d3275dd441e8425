"""A Prefect server of our own, for runs from the command line when there is no other.

Prefect starts one by itself when it has no API to talk to, but only after it has imported the server into the
flow's process too, and the two follow each other. Started here, the server gets ready while the flow is
imported: about 3 s less. It ends with its parent, however the parent ends.

``python -m flows.server PORT`` is that server.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import EXIT_FAILED

HOST = "127.0.0.1"
DEFAULT_PORT = 4200
READY_SECONDS = 120
ANSWER_SECONDS = 10
DRAIN_SECONDS = 10
LOG_LINES_SHOWN = 15

NO_TELEMETRY = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
# What goes wrong is said once, by the command line; the whole log of a run goes to the API.
QUIET_CONSOLE = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}


class ServerFailed(RuntimeError):
    """The server ended, or did not answer in time."""

    exit_status = EXIT_FAILED


class TemporaryServer:
    """A server on a free port, with its log in ``log``. ``start`` returns at once, ``wait`` when it answers."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def api_url(self) -> str:
        return f"http://{HOST}:{self.port}/api"

    def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.server", str(self.port)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "PREFECT_SERVER_LOGGING_LEVEL": "ERROR"},
                cwd=Path(__file__).parents[1],
                start_new_session=True,  # Ctrl-C is for the flow, which still has its end to record
            )

    def wait(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not answers(self.api_url):
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                what = "ended at its start" if ended else f"did not answer within {READY_SECONDS} s"
                last = "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
                raise ServerFailed(
                    f"the local Prefect server {what}; correct what it says, or set PREFECT_API_URL to a server that "
                    f"runs. Its last lines:\n{last}"
                )
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server, once it has what this process still has to tell it."""
        _drain()
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()


def answers(api_url: str) -> bool:
    """Whether a Prefect server is healthy at ``api_url``."""
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=2) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


def running_api_url() -> str | None:
    """The API to use: that of the environment or of Prefect's profile, else a server on the default port, else None."""
    local = f"http://{HOST}:{DEFAULT_PORT}/api"
    return os.environ.get("PREFECT_API_URL") or _profile_api_url() or (local if answers(local) else None)


def _profile_api_url() -> str | None:
    """``PREFECT_API_URL`` of the active profile, read without Prefect: importing it takes as long as the server."""
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml"))
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return None
    name = os.environ.get("PREFECT_PROFILE", content.get("active"))
    return content.get("profiles", {}).get(name, {}).get("PREFECT_API_URL")


def check_answers(api_url: str, attempts: int = 2) -> None:
    """Refuse an API that nobody serves; one that answers anything at all is there.

    Raises:
        ServerFailed: naming the URL and what to do.
    """
    for left in reversed(range(attempts)):
        try:
            urllib.request.urlopen(f"{api_url}/health", timeout=ANSWER_SECONDS).close()
            return
        except urllib.error.HTTPError:
            return
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: no URL
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLError):
                return  # Prefect has its own settings for certificates
            if left:
                time.sleep(1)
                continue
            raise ServerFailed(
                f"PREFECT_API_URL = {api_url!r}: no Prefect server answers there ({reason}); start it (prefect server "
                "start), correct the variable or Prefect's profile, or unset it: then a flow starts a server of its own"
            ) from error


@contextlib.contextmanager
def started_api(log: Path) -> Iterator[TemporaryServer | None]:
    """Point ``PREFECT_API_URL`` at a running server (None), or at one that is starting: ``wait`` for it."""
    for name, value in {**NO_TELEMETRY, **QUIET_CONSOLE}.items():
        os.environ.setdefault(name, value)
    if api_url := running_api_url():
        check_answers(api_url)
        os.environ["PREFECT_API_URL"] = api_url
        yield None
        return
    server = TemporaryServer(log)
    os.environ["PREFECT_API_URL"] = server.api_url
    server.start()
    try:
        yield server
    finally:
        server.stop()
        log.unlink(missing_ok=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def _drain() -> None:
    """Send the logs and states that Prefect's client still holds; it would try for a minute after the server's end."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        for worker in (APILogWorker, EventsWorker):
            worker.drain_all(timeout=DRAIN_SECONDS)


def _serve(port: int) -> None:
    import uvicorn

    threading.Thread(target=_exit_with_parent, daemon=True).start()
    uvicorn.run("prefect.server.api.server:create_app", factory=True, host=HOST, port=port, log_level="error")


def _exit_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not through sys.stdin: its lock would be held when the interpreter ends
    os._exit(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
