"""The report in a real browser, offline."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from playwright.sync_api import Page

from tasks.report.numbers import NBSP
from tests.patching.report.pages import Report
from tests.patching.report.synthetic import PROMPTS
from tests.report.opened import check_nothing_is_cut, check_opened, open_page

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def points(page, figure: str) -> list[int]:
    """Markers drawn in each visible trace of a figure."""
    return page.evaluate(
        "id => [...document.querySelectorAll(`#${id} .scatterlayer .trace`)]"
        ".map(trace => trace.querySelectorAll('.points path').length).filter(n => n > 0)",
        figure,
    )


def test_opens_offline_without_errors_or_requests(report, opened):
    check_opened(report.html, opened)
    check_nothing_is_cut(opened.page)


@pytest.mark.parametrize("name", ["null_report", "empty_report", "unconfirmed_report"])
def test_opens_when_parts_are_missing(name, request, browser, tmp_path):
    report: Report = request.getfixturevalue(name)
    opened = open_page(browser, report.html, tmp_path)
    check_opened(report.html, opened)
    opened.page.context.close()


def test_figures_show_every_point_of_the_chosen_choice(report, opened):
    page = opened.page
    chosen = report.data.strongest[0].choice
    for choice in (chosen, *(c for c in report.data.setup.choices if c != chosen)):
        page.locator("#effects .choices label", has_text=choice).click()
        for i, prompt in enumerate(PROMPTS):
            rows = [r for r in report.data.effects if (r.prompt, r.choice) == (prompt, choice)]
            repeated = [r for r in rows if r.confirmation]
            assert sum(points(page, f"effects-{i}")) == 2 * len(rows) + len(repeated)
            assert len(rows) == 8
        assert sum(points(page, "agreement-plot")) == 16
    assert sum(points(page, "layers-difference")) == 48
    assert sum(points(page, "layers-effect")) == 96
    bars = page.locator("#outcomes-plot .bars path").count()
    assert bars == 3 * sum(c.arm in ("baseline", "reconstruction") for c in report.data.outcomes)


def test_hovering_a_point_tells_feature_counts_and_interval(report, opened):
    page = opened.page
    page.locator("#effects .choices label", has_text="bet").click()
    page.locator("#effects-0").scroll_into_view_if_needed()
    box = page.locator("#effects-0 .trace .point").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#effects-0 .hovertext")
    text = page.locator("#effects-0 .hovertext").text_content().replace(NBSP, " ")
    row = next(r for r in report.data.effects if r.status and (r.prompt, r.choice) == ("safe", "bet"))
    assert row.id.name in text
    assert f"{row.estimate.a.k} of {row.estimate.a.n} against {row.estimate.b.k} of {row.estimate.b.n}" in text
    assert "95 % interval" in text


def test_one_choice_for_all_sections(opened):
    page = opened.page
    page.locator("#doses .choices label", has_text="bet").click()
    checked = page.eval_on_selector_all(".choices input:checked", "nodes => nodes.map(n => n.value)")
    assert checked == ["bet"] * 3
    shown = page.evaluate("document.getElementById('dose-0').data.filter(t => t.visible).map(t => t.meta.choice)")
    assert set(shown) == {"bet"}


def test_choice_works_from_the_keyboard(opened):
    page = opened.page
    page.locator("#effects .choices input:checked").focus()
    before = page.locator("#effects .choices input:checked").get_attribute("value")
    page.keyboard.press("ArrowRight")
    assert page.locator("#effects .choices input:checked").get_attribute("value") != before


def test_tables_sort_by_number_both_ways_and_by_keyboard(report, opened):
    page = opened.page
    page.locator("#effects details").evaluate("d => d.open = true")
    heading = page.locator("#effects-table th", has_text="Effect")
    button = heading.locator("button")

    def shown() -> list[float]:
        column = "rows => rows.map(row => Number(row.cells[6].dataset.v))"
        return page.eval_on_selector_all("#effects-table tbody tr", column)

    button.click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert shown() == sorted(r.estimate.effect for r in report.data.effects)
    button.focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert shown() == sorted((r.estimate.effect for r in report.data.effects), reverse=True)


def test_numbers_shown_are_the_numbers_of_the_tables(report, opened):
    page = opened.page
    cells = page.eval_on_selector_all(
        "#effects-table tbody tr",
        "rows => rows.map(row => [...row.cells].map(cell => cell.dataset.v ?? cell.textContent.trim()))",
    )
    shown = {(c[0], c[1], c[2]): [float(x) for x in (c[4], c[5], c[6], c[7], c[8])] for c in cells}
    measured = {
        (f"L{r['layer']}/{r['feature']}", r["prompt"], r["choice"]): [
            r[name] for name in ("rate_b", "rate_a", "effect", "ci_low", "q")
        ]
        for r in report.rows("verdict", "effects")
        if r["phase"] == "discovery" and r["contrast"] == "high_vs_low"
    }
    assert shown.keys() == measured.keys()
    for key, values in measured.items():
        assert shown[key] == pytest.approx(values, abs=1e-12)


def test_run_facts_are_filled_in(opened):
    page = opened.page
    stages = page.locator("#stages tbody tr")
    assert stages.count() == 10
    row = stages.filter(has_text="trials").first
    assert "chunks done before" in row.text_content()
    facts = page.locator("#run-facts").text_content()
    assert "worker-1" in facts
    assert "vllm 0.32.0" in facts


def test_model_output_is_inert(report, opened):
    assert any("<script>" in e.response for s in report.data.examples for c in s.columns for e in c.items)
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert opened.page.locator("pre", has_text="<script>window.hacked").count() > 0
    assert opened.page.evaluate("window.hacked") is None
    assert opened.page.locator("pre script, pre img").count() == 0


def test_content_policy_stops_what_escaping_would_miss(report, opened):
    opened.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 1';"
        " document.body.append(s); }"
    )
    assert opened.page.evaluate("window.hacked") is None
    assert "has been blocked" in opened.console.pop()


@pytest.fixture
def page(opened) -> Iterator[Page]:
    """The opened page, put back afterwards."""
    yield opened.page
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    opened.page.emulate_media(media="screen", color_scheme="light")
    opened.page.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_nothing_sticks_out(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.wait_for_function("w => document.documentElement.scrollWidth <= w", arg=width)


def test_figures_keep_their_height_when_the_window_changes(page):
    heights = "nodes => nodes.map(n => n.querySelector('.main-svg').getBoundingClientRect().height)"
    before = page.eval_on_selector_all(".plot", heights)
    page.set_viewport_size({"width": 800, "height": 700})
    narrow = "n => document.querySelector(n).getBoundingClientRect().width < 780"
    page.wait_for_function(narrow, arg="#outcomes-plot .main-svg")
    assert page.eval_on_selector_all(".plot", heights) == before


def test_palettes_of_light_dark_and_paper(page):
    colour = "getComputedStyle(document.querySelector('#dose-0 .point')).fill"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"light => {colour} !== light", arg=light)
    page.emulate_media(color_scheme="dark", media="print")
    page.wait_for_function(f"light => {colour} === light", arg=light)


def test_printing_shows_closed_blocks(page):
    assert page.locator("details:not([open])").count() > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0


def test_structure_for_screen_readers(opened):
    page = opened.page
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "nodes => nodes.map(n => Number(n.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert page.locator("html[lang=en]").count() == 1
    unnamed = "nodes => nodes.filter(n => !n.getAttribute('aria-label')).length"
    assert page.eval_on_selector_all("[role=img], [role=region], nav", unnamed) == 0
    targets = page.eval_on_selector_all("nav a", "nodes => nodes.map(n => n.hash)")
    assert all(page.locator(target).count() == 1 for target in targets)
