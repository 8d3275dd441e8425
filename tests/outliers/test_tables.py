"""The declared tables of an outlier study, and their page."""

from __future__ import annotations

from pathlib import Path

from tasks.outliers import tables

PAGE = Path(__file__).parents[2] / "docs" / "tables" / "outliers.md"


def test_the_documentation_lists_the_tables_as_they_are() -> None:
    assert PAGE.read_text(encoding="utf-8") == tables.page(), f"python -m tasks.outliers.tables > {PAGE}"


def test_each_column_is_there_once_and_says_what_it_means() -> None:
    for table in tables.TABLES:
        assert len(set(table.names)) == len(table.names), table.name
        assert all(column.meaning.endswith(".") for column in table.columns), table.name
