"""Places on any filesystem that fsspec speaks, as the user names them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec import AbstractFileSystem

from tasks.errors import BadInput


def open_location(location: str, field: str, example: str, **options: Any) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a path or URL, and the path there. ``options`` go to the filesystem.

    Raises:
        BadInput: of this ``field``: a URL with credentials, whose place is the environment, or one that no installed
            filesystem speaks. ``example`` is a URL that would do.
    """
    for part in location.split("::"):
        where = urlsplit(part) if "://" in part else None
        if where and "@" in where.netloc:
            shown = f"{where.scheme}://...@{where.netloc.rpartition('@')[2]}{where.path}"
            raise BadInput(field, shown, "a URL can't carry credentials", "give them by the environment")
    try:
        return fsspec.url_to_fs(location, **options)
    except (ImportError, ValueError) as error:
        remedy = f"use a local path, {example}, or a URL of an installed fsspec filesystem"
        raise BadInput(field, location, str(error), remedy) from error
