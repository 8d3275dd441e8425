"""The report in a real browser, offline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from playwright.sync_api import Browser, Page

from tasks.report.numbers import NBSP
from tests.outliers.report.pages import Report
from tests.outliers.report.worlds import HOSTILE, SMALL, SWEEP
from tests.report.opened import Opened, check_nothing_is_cut, check_opened, open_page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"
ALL_DRAWN = "() => [...document.querySelectorAll('.plot')].every(n => n.querySelector('svg.main-svg'))"


@pytest.fixture
def page(opened: Opened) -> Iterator[Page]:
    """The opened sweep, put back afterwards."""
    yield opened.page
    opened.page.evaluate(
        "document.querySelectorAll('details').forEach(d => d.open = d.matches('.model') && d.id === 'm0')"
    )
    opened.page.emulate_media(media="screen", color_scheme="light")
    opened.page.set_viewport_size({"width": 1280, "height": 900})


@pytest.fixture(scope="module")
def open_once(
    request: pytest.FixtureRequest, browser: Browser, opened: Opened, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Opened]:
    """The page of a report, by the name of its fixture, as the tests before have left it."""
    pages = {"sweep": opened}

    def page_of(name: str) -> Opened:
        if name not in pages:
            pages[name] = open_page(browser, request.getfixturevalue(name).html, tmp_path_factory.mktemp(name))
        return pages[name]

    return page_of


def test_figures_of_closed_models_wait_until_they_are_opened(page, opened, sweep: Report):
    drawn = "document.querySelectorAll('.plot svg.main-svg').length"
    closed = page.locator("details.model:not([open]) .plot")
    assert closed.count() > 20
    assert page.locator("details.model:not([open]) .plot svg").count() == 0
    before = page.evaluate(drawn)
    page.evaluate(OPEN_ALL)
    page.wait_for_function(ALL_DRAWN)
    assert page.evaluate(drawn) > before
    check_opened(sweep.html, opened)


@pytest.mark.parametrize("name", ["one", "moe", "none", "failed"])
def test_opens_offline_without_errors_or_requests(name, request, open_once):
    report: Report = request.getfixturevalue(name)
    opened = open_once(name)
    check_opened(report.html, opened)
    check_nothing_is_cut(opened.page)
    for width in (375, 1600):
        opened.page.set_viewport_size({"width": width, "height": 900})
        opened.page.wait_for_function("w => document.documentElement.scrollWidth <= w", arg=width)


@pytest.mark.parametrize("width", [375, 820, 1280, 1600])
def test_nothing_sticks_out(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate(OPEN_ALL)
    page.wait_for_function(ALL_DRAWN)
    page.wait_for_function("w => document.documentElement.scrollWidth <= w", arg=width)
    inside = "w => [...document.querySelectorAll('.plot .main-svg')].every(n => n.getBoundingClientRect().right <= w)"
    page.wait_for_function(inside, arg=width)


def test_a_link_opens_the_model_it_leads_to(page):
    page.locator("nav a", has_text="Experts-47B").click()
    page.wait_for_function("document.getElementById('m2').open")
    page.wait_for_selector("#m2-load svg.main-svg")


def test_one_choice_of_positions_for_the_whole_page(page):
    chosen = "document.getElementById('m0-norms-heat').data.map(t => t.visible)"
    assert page.evaluate(chosen) == [True, False]
    page.locator("#m0-scale .choices label", has_text="without the first").click()
    assert page.evaluate(chosen) == [False, True]
    checked = page.eval_on_selector_all("input[name^=positions]:checked", "nodes => nodes.map(n => n.value)")
    assert set(checked) == {"without the first"}
    assert len(checked) > 5
    page.evaluate("document.getElementById('m1').open = true")
    page.wait_for_selector("#m1-norms-heat svg.main-svg")
    drawn_later = "document.getElementById('m1-norms-heat').data.map(t => t.visible)"
    assert page.evaluate(drawn_later) == [False, True]
    page.locator("#m0-scale .choices label", has_text="all positions").click()
    assert page.evaluate(chosen) == [True, False]


def test_a_figure_is_saved_as_a_picture(page):
    page.locator("figure", has=page.locator("#m0-norms-points")).hover()
    with page.expect_download() as saved:
        page.locator("figure", has=page.locator("#m0-norms-points")).locator(".save").click()
    assert saved.value.suggested_filename == "m0-norms-points.png"
    assert saved.value.path().read_bytes().startswith(b"\x89PNG")


def test_sizes_switch_to_active_parameters(page, sweep: Report):
    moe = "document.getElementById('size-layers').data.find(t => t.visible && t.marker.symbol === 'square').x"
    before = page.evaluate(moe)
    page.locator("#models .choices label", has_text="active per token").click()
    assert page.evaluate(moe) < before
    page.locator("#models .choices label", has_text="all parameters").click()
    assert page.evaluate(moe) == before


def test_hovering_a_cell_tells_dimension_point_and_counts(page, sweep: Report):
    site = sweep.data.models[SWEEP.index(SMALL)].site
    page.locator("#m0-norms-heat").scroll_into_view_if_needed()
    box = page.locator("#m0-norms-heat .heatmaplayer image").first.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] - 5)
    page.wait_for_selector("#m0-norms-heat .hovertext")
    text = page.locator("#m0-norms-heat .hovertext").text_content().replace(NBSP, " ")
    assert f"dimension {site.heat.dims[0]} at {site.points[-1].name}" in text
    assert f"{site.heat.occurrences['all'][-1][0]} outliers" in text
    assert "% of positions" in text


def test_numbers_shown_are_the_numbers_of_the_tables(page, sweep: Report):
    cells = page.eval_on_selector_all(
        "#m0-table tbody tr",
        "rows => rows.map(row => [...row.cells].slice(0, 12).map(cell => Number(cell.dataset.v ?? NaN)))",
    )
    rows = {
        r["dim"]: r
        for r in sweep.examined[0].rows("dimensions")
        if (r["site"], r["positions"], r["systematic"]) == ("norms", "all", True)
    }
    first = cells[: len(rows)]
    assert [int(c[0]) for c in first] == sorted(rows, key=lambda dim: -rows[dim]["max_magnitude"])
    for cell in first:
        row = rows[int(cell[0])]
        names = ("max_magnitude", "layer_share", "position_share", "mean_point_share", "recurrence")
        assert cell[2:7] == pytest.approx([row[name] for name in names])
        assert cell[8:11] == pytest.approx([row[name] for name in ("occurrences", "max_over_rms", "max_over_median")])


def test_models_sort_by_number(page):
    heading = page.locator("#models-table th", has_text="Parameters")
    heading.locator("button").click()
    names = page.eval_on_selector_all("#models-table tbody tr", "rows => rows.map(row => row.cells[1].textContent)")
    assert names == [w.name for w in sorted(SWEEP, key=lambda w: w.parameters)]
    page.locator("#models-table th", has_text="No.").locator("button").click()


def test_hostile_names_are_inert(page):
    page.evaluate(OPEN_ALL)
    page.wait_for_function(ALL_DRAWN)
    assert page.locator("h2", has_text="<img src=x onerror").count() == 1
    assert HOSTILE in page.locator("#failures").text_content()
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main script").count() == 0


def test_palettes_of_light_dark_and_paper(page):
    colour = "document.getElementById('m0-norms-heat').layout.coloraxis.colorscale[5][1]"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"light => {colour} !== light", arg=light)
    page.emulate_media(color_scheme="dark", media="print")
    page.wait_for_function(f"light => {colour} === light", arg=light)


def test_printing_shows_and_draws_closed_models(page):
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate(f"({ALL_DRAWN})()")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.model:not([open])").count() == len(SWEEP) - 1


def test_run_facts_are_filled_in(page):
    assert page.locator("#stages tbody tr").count() == 4 * len(SWEEP) - 1
    assert "worker-1" in page.locator("#run-facts").text_content()


@pytest.mark.parametrize("name", ["sweep", "one", "moe"])
def test_structure_for_screen_readers(name, open_once):
    page = open_once(name).page
    page.evaluate(OPEN_ALL)
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "nodes => nodes.map(n => Number(n.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    unnamed = "nodes => nodes.filter(n => !n.getAttribute('aria-label')).length"
    assert page.eval_on_selector_all("[role=img], [role=region], nav", unnamed) == 0
    assert page.eval_on_selector_all("table", "nodes => nodes.filter(n => !n.querySelector('th')).length") == 0
    targets = page.eval_on_selector_all("nav a", "nodes => nodes.map(n => n.hash)")
    assert all(page.locator(target).count() == 1 for target in targets)
