"""Texts with {field} placeholders: plain names only, with a format of sensible width. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter

_SPEC = re.compile(r"(?:.?[<>=^])?[-+ ]?#?0?\d{0,3}[,_]?(?:\.\d{1,2})?[a-zA-Z%]?")


def check(template: str) -> str:
    """The template, if it can be filled.

    Raises:
        ValueError: a brace is not closed, or a placeholder is more than a name and a format such as .2f.
    """
    for _, name, spec, conversion in Formatter().parse(template):
        if name is not None and not name.isidentifier():
            raise ValueError(
                f"the placeholder {{{name}}} is no field's name; write {{{{ and }}}} for braces of the text"
            )
        if conversion is not None or not _SPEC.fullmatch(spec or ""):
            raise ValueError(f"the placeholder {{{name}}} has a format that is not allowed; write {{{name}}} alone")
    return template


def fill(template: str, row: Mapping[str, str | int | float]) -> str:
    """The template with the fields of ``row`` in it.

    Raises:
        KeyError: there is no such field.
        ValueError: a format does not suit its value.
    """
    return check(template).format_map(row)
