"""A place where files lie: a folder here, a Hugging Face repository, a folder behind a URL. All answer alike.

Files are asked for by their names, all of which must be there, or by patterns (`Wanted`). They lie in the place
itself or in a folder below it: "" is the place itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path

from fsspec import AbstractFileSystem

from tasks.errors import BadInput
from tasks.places.patterns import matching


@dataclass(frozen=True)
class Wanted:
    """Which files of a folder matter, by patterns of their names."""

    first: str
    """A file that is there in any case. It is fetched first, and says of which commit the others are."""
    every: tuple[str, ...]
    either: tuple[tuple[str, ...], ...] = ()
    """Groups of patterns; only the first group counts that any file is of."""
    ignored_prefixes: tuple[str, ...] = (".",)
    what: str = "model"
    """What these files make, for messages."""

    def among(self, names: Iterable[str]) -> list[str]:
        """The files that matter, sorted."""
        names = list(names)
        chosen = next(filter(None, (self.matching(names, group) for group in self.either)), [])
        return sorted({*self.matching(names, self.every), *chosen})

    def matching(self, names: Iterable[str], patterns: Sequence[str]) -> list[str]:
        names = [name for name in names if not name.startswith(self.ignored_prefixes)]
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


Files = Wanted | Sequence[str]


@dataclass(frozen=True)
class Place(ABC):
    location: str
    """Absolute path, hub id, or URL: as messages say it."""
    field: str
    """The parameter it came from, for messages."""

    def bad(self, problem: str, remedy: str) -> BadInput:
        return BadInput(self.field, self.location, problem, remedy)

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Content of one small file."""

    @abstractmethod
    def folders(self, pattern: str, marker: str) -> list[str]:
        """Folders below the place that match `pattern` and hold the file `marker`, sorted."""

    @abstractmethod
    def fetch(self, files: Files, folder: str = "") -> Path:
        """A local folder with these files, downloaded where need be."""

    @abstractmethod
    def fingerprint(self, files: Files, folder: str = "") -> str:
        """Changes iff the content of the files does (of a Hugging Face repository: iff its commit does)."""


def folders_in(fs: AbstractFileSystem, root: str, pattern: str, marker: str) -> list[str]:
    """`Place.folders` of any filesystem."""
    wanted = join(pattern, marker)
    if has_magic(wanted):
        found = list(matching(fs, root, wanted))
    else:
        found = [wanted] if is_file(fs, join(root.rstrip("/"), wanted)) else []
    return sorted(parent(path, marker) for path in found)


def is_file(fs: AbstractFileSystem, path: str) -> bool:
    """Raises what the filesystem does, other than its own `isfile`, which takes every failure for a no."""
    try:
        return fs.info(path)["type"] == "file"
    except (FileNotFoundError, NotADirectoryError):
        return False


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def parent(path: str, marker: str) -> str:
    return path.removesuffix(marker).rstrip("/")
