"""Command lines that never repeat credentials."""

from __future__ import annotations

import argparse
from typing import NoReturn

from tasks.places.credentials import carries_credentials, hidden, shown
from tasks.places.location import PROBLEM, REMEDY


class Parser(argparse.ArgumentParser):
    """As argparse's, whose messages repeat what was typed."""

    def error(self, message: str) -> NoReturn:
        super().error(hidden(message))


def location(text: str) -> str:
    """The type of an argument that names a place."""
    if carries_credentials(text):
        raise argparse.ArgumentTypeError(f"{shown(text)!r}: {PROBLEM}; {REMEDY}")
    return text
