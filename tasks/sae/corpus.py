"""Text to train on that is there without a download: the language reference that comes with Python."""

from __future__ import annotations

import hashlib
from pydoc_data.topics import topics


def library_prose() -> list[str]:
    """The topics of Python's own documentation as plain text, in order of their names."""
    return [topics[name].strip() for name in sorted(topics)]


def library_fingerprint() -> str:
    """Changes when the text does: another release of Python brings another one."""
    digest = hashlib.sha256()
    for text in library_prose():
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:32]
