"""Text to train on that is there without a download: topics of Python's language reference.

Copyright 2001-2023 Python Software Foundation, under the license beside the file. It is kept here since every
release of Python brings a text of its own, and results must not depend on which one runs a shard.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("python_topics.txt.gz")
SEPARATOR = "\f"


@cache
def library_prose() -> tuple[str, ...]:
    """The topics as plain text."""
    return tuple(gzip.decompress(FILE.read_bytes()).decode().split(SEPARATOR))


@cache
def library_fingerprint() -> str:
    """Changes when the text does."""
    digest = hashlib.sha256()
    for text in library_prose():
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:32]
