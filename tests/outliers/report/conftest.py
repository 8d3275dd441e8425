"""Reports of synthetic examinations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.outliers.report.pages import Report, build
from tests.outliers.report.synthetic import Examination, examine
from tests.outliers.report.worlds import FAILURE, MOE, NEAR, NONE, SMALL, SWEEP
from tests.report.opened import Opened, open_page


@pytest.fixture(scope="session")
def examined() -> list[Examination]:
    return [examine(world) for world in SWEEP]


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory, examined: list[Examination]) -> Report:
    """Six models, and one that failed."""
    return build(tmp_path_factory.mktemp("store"), examined, failures=[FAILURE])


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory, examined: list[Examination]) -> Report:
    """The small dense model alone."""
    return build(tmp_path_factory.mktemp("store"), [examined[SWEEP.index(SMALL)]])


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory, examined: list[Examination]) -> Report:
    """The mixture of experts alone."""
    return build(tmp_path_factory.mktemp("store"), [examined[SWEEP.index(MOE)]])


@pytest.fixture(scope="session")
def none(tmp_path_factory: pytest.TempPathFactory, examined: list[Examination]) -> Report:
    """The model without an outlier alone."""
    return build(tmp_path_factory.mktemp("store"), [examined[SWEEP.index(NONE)]])


@pytest.fixture(scope="session")
def near(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The model with outliers at too few points alone."""
    return build(tmp_path_factory.mktemp("store"), [examine(NEAR)])


@pytest.fixture(scope="session")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A sweep of which no model was examined."""
    return build(tmp_path_factory.mktemp("store"), [], failures=[FAILURE])


@pytest.fixture(scope="module")
def opened(browser: Browser, sweep: Report, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """The sweep's page, opened once for all tests that look at it."""
    opened = open_page(browser, sweep.html, tmp_path_factory.mktemp("page"))
    yield opened
    opened.page.context.close()
