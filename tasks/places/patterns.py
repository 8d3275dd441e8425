"""Patterns of paths as shells have them: * ? [abc], and ** for any depth.

A folder that is there as written is no pattern; elsewhere a literal ``[`` is written ``[[]``.
"""

from __future__ import annotations

import re
from glob import has_magic
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate


def split_pattern(fs: AbstractFileSystem, location: str) -> tuple[str, str]:
    """ "/data/[a]/layer_*" as ("/data/[a]", "layer_*") where the folder "[a]" exists: the longest part that is no
    pattern, and what is to be matched below it ("" for nothing)."""
    parts = location.split("/")
    for at, part in enumerate(parts):
        if has_magic(part) and not fs.isdir("/".join(parts[: at + 1])):
            return "/".join(parts[:at]) or ("/" if at else "."), "/".join(parts[at:])
    return location, ""


def matching(fs: AbstractFileSystem, root: str, pattern: str) -> dict[str, dict[str, Any]]:
    """What the filesystem says of every file below ``root`` that matches, by its path relative to ``root``, sorted.

    Raises:
        ValueError: this can't be a pattern.
    """
    wanted = re.compile(glob_translate(pattern))
    depth = None if "**" in pattern else pattern.count("/") + 1
    start = fs._strip_protocol(root).rstrip("/") + "/"
    found = fs.find(root, maxdepth=depth, detail=True)
    files = {path.removeprefix(start): info for path, info in found.items() if path.startswith(start)}
    return {path: files[path] for path in sorted(files) if wanted.match(path)}
