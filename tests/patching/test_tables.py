"""The declared tables of a patching study, and their page."""

from __future__ import annotations

from pathlib import Path

from tasks.patching import tables

PAGE = Path(__file__).parents[2] / "docs" / "tables" / "patching.md"


def test_the_documentation_lists_the_tables_as_they_are() -> None:
    assert PAGE.read_text(encoding="utf-8") == tables.page(), f"python -m tasks.patching.tables > {PAGE}"


def test_each_column_is_there_once_and_says_what_it_means() -> None:
    for table in tables.TABLES:
        assert len(set(table.names)) == len(table.names), table.name
        assert all(column.meaning.endswith(".") for column in table.columns), table.name


def test_the_screen_has_two_columns_for_each_outcome() -> None:
    added = tables.screen(["bet", "stop"]).names[9:]
    assert added == ["p_bet", "p_stop", "p_invalid", "effect_bet", "effect_stop", "effect_invalid"]
