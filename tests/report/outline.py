"""A page's tags: what it loads, its scripts, and whether its tags balance."""

from __future__ import annotations

from html.parser import HTMLParser


class Outline(HTMLParser):
    """Tags that load something, scripts, and balance of tags."""

    VOID = ("meta", "link", "br", "img", "input", "hr", "path", "circle", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[tuple[str, str]] = []
        self.scripts: list[tuple[dict, str]] = []
        self.handlers: list[str] = []
        self.policy = ""

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        self.loads += [(tag, value) for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "script":
            self.scripts.append((given, ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            given, text = self.scripts.pop()
            self.scripts.append((given, text + data))


def outline(html: str) -> Outline:
    parsed = Outline()
    parsed.feed(html)
    parsed.close()
    return parsed
