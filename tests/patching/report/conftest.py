"""Reports of synthetic patching studies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.patching.report import synthetic
from tests.patching.report.pages import Report, build
from tests.report.opened import Opened, open_page


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


@pytest.fixture(scope="module")
def opened(browser: Browser, report: Report, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """The report of the study with two planted features, opened once for all tests that look at it."""
    opened = open_page(browser, report.html, tmp_path_factory.mktemp("page"))
    yield opened
    opened.page.context.close()
