"""Reports of synthetic studies, and a browser to open them in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.report import synthetic
from tests.report.pages import Opened, Report, build, open_page
from tests.requirements import need

CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def world() -> synthetic.World:
    return synthetic.World()


@pytest.fixture(scope="session")
def stages(world: synthetic.World) -> dict[str, list[synthetic.Stage]]:
    return synthetic.make(world)


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory, stages: dict[str, list[synthetic.Stage]]) -> Report:
    """The report of a study with two planted features."""
    return build(tmp_path_factory.mktemp("store"), stages)


@pytest.fixture(scope="session")
def null_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a study in which features were sampled and none does anything."""
    stages = synthetic.make(synthetic.World(planted=0.0, trials=12), min_responses=10_000)
    return build(tmp_path_factory.mktemp("store"), stages)


@pytest.fixture(scope="session")
def empty_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a study in which no candidate survived the screen."""
    stages = synthetic.make(synthetic.World(planted=0.0), max_survivors=0)
    return build(tmp_path_factory.mktemp("store"), stages)


@pytest.fixture(scope="session")
def unconfirmed_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a study with discoveries that were not repeated, on SAEs that were not trained in it."""
    stages = synthetic.make(synthetic.World(), confirm=False)
    del stages["saes"]
    return build(tmp_path_factory.mktemp("store"), stages)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    need("browser", path is not None, "apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def opened(browser: Browser, report: Report, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """The report of the study with two planted features, opened once for all tests that look at it."""
    opened = open_page(browser, report, tmp_path_factory.mktemp("page"))
    yield opened
    opened.page.context.close()
