"""Parts that all figures share."""

from __future__ import annotations

from tasks.report.figures import TITLE_WIDTH, axis


def test_long_titles_of_axes_get_several_lines() -> None:
    title = "|d|, gambling with <borrowed> money against playing safe prompts, or a_name_that_is_far_longer_than_a_line"
    lines = axis(title)["title"]["text"].replace("&lt;", "<").replace("&gt;", ">").split("<br>")
    assert len(lines) > 3
    assert all(len(line) <= TITLE_WIDTH for line in lines)
    assert "".join(lines).replace(" ", "") == title.replace(" ", "")
    assert axis("layer")["title"]["text"] == "layer"
    assert "title" not in axis("")
