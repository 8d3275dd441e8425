"""Opening a report in a browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page


@dataclass
class Opened:
    """A page in the browser and all that went wrong in it."""

    page: Page
    console: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def open_page(browser: Browser, html: str, folder: Path) -> Opened:
    """The report opened from a file, offline, on a laptop's screen in light colours."""
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light", offline=True)
    opened = Opened(context.new_page())
    opened.page.on("console", lambda message: opened.console.append(f"{message.type}: {message.text}"))
    opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(path.as_uri())
    return opened


def check_opened(html: str, opened: Opened) -> None:
    """Every figure is drawn, nothing failed, nothing but the file was asked for."""
    assert opened.errors == []
    assert opened.console == []
    assert len(opened.requests) == 1, "one file"
    assert opened.requests[0].startswith("file:")
    figures = opened.page.locator(".plot")
    assert figures.count() == html.count('class="plot"')
    drawn = opened.page.eval_on_selector_all(".plot", "nodes => nodes.every(n => n.querySelector('svg.main-svg'))")
    assert drawn


WIDTHS = (1280, 390)
"""Pixels: a laptop, and a phone."""
CUT = """() => [...document.querySelectorAll('.plot')].flatMap(plot => {
  const box = plot.getBoundingClientRect();
  return [...plot.querySelectorAll('[class*=title], .legend, .xtick text, .ytick text')].filter(node => {
    const { left, right, top, bottom, width } = node.getBoundingClientRect();
    return width && (left < box.left - 1 || right > box.right + 1 || top < box.top - 1 || bottom > box.bottom + 1);
  }).map(node => `${plot.id}: ${node.textContent}`);
})"""


def check_nothing_is_cut(page: Page) -> None:
    """On a laptop and on a phone, every title, legend and tick lies within its figure, and no bar lies over it."""
    before = page.viewport_size
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(
            "() => [...document.querySelectorAll('.plot')].every(plot => !plot.clientWidth ||"
            " Math.abs(plot.clientWidth - plot.querySelector('.main-svg').clientWidth) < 2)"
        )
        assert page.evaluate(CUT) == []
    assert page.locator(".modebar").count() == 0
    page.set_viewport_size(before)
