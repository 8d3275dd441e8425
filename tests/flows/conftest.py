"""A real Prefect server for the tests of the flows, and what they run on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.server import NO_TELEMETRY, TemporaryServer

ENVIRONMENT = {**NO_TELEMETRY, "TOMOGRAPH_PLUGINS": "tests.toy_tasks", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="package")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """API URL of a Prefect server on a free port, with SQLite in a temporary folder."""
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("PREFECT_HOME", str(home))
        server = TemporaryServer(home / "server.log")
        server.start()
        try:
            server.wait()
            patch.setenv("PREFECT_API_URL", server.api_url)
            with temporary_settings({PREFECT_API_URL: server.api_url, PREFECT_HOME: home}):
                yield server.api_url
        finally:
            server.stop()


@pytest.fixture(autouse=True)
def runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slots of its own for each test."""
    folder = tmp_path / "runtime"
    monkeypatch.setenv("TOMOGRAPH_RUNTIME_DIR", str(folder))
    return folder
