"""The server that the command line starts when there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.server import ServerFailed, TemporaryServer, answers, check_answers, free_port, running_api_url
from tests.flows.processes import wait_until, with_environment

OWNER = """
import sys, time
from pathlib import Path
from flows.server import TemporaryServer
TemporaryServer(Path(sys.argv[1])).start()
print("started", flush=True)
time.sleep(600)
"""


def test_it_ends_with_its_owner(tmp_path: Path) -> None:
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path)}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert owner.stdout is not None
    owner.stdout.readline()
    assert len(with_environment("PREFECT_HOME", str(tmp_path))) == 2
    owner.kill()
    owner.wait()
    wait_until(lambda: not with_environment("PREFECT_HOME", str(tmp_path)), 20, "the server ends")


def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////nowhere/at/all.db")
    server = TemporaryServer(tmp_path / "log")
    server.start()
    try:
        with pytest.raises(ServerFailed, match="unable to open database file"):
            server.wait()
    finally:
        server.stop()


def test_an_api_that_nobody_serves_is_named(prefect_server: str) -> None:
    for url in (f"http://127.0.0.1:{free_port()}/api", "http://nowhere.invalid/api", "nonsense"):
        with pytest.raises(ServerFailed, match=f"PREFECT_API_URL = '{url}': no Prefect server answers there"):
            check_answers(url, attempts=1)
    check_answers(prefect_server)
    check_answers(f"{prefect_server}/of/someone")


def test_the_api_of_the_environment_comes_first(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers(prefect_server)
    assert running_api_url() == prefect_server
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    assert running_api_url() == "https://prefect.example/api"


def test_prefects_profile_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    profiles = """active = "team"
[profiles.team]
PREFECT_API_URL = "https://team.example/api"
[profiles.other]
PREFECT_API_URL = "https://other.example/api"
"""
    (tmp_path / "profiles.toml").write_text(profiles)
    assert running_api_url() == "https://team.example/api"
    monkeypatch.setenv("PREFECT_PROFILE", "other")
    assert running_api_url() == "https://other.example/api"
