"""Local folders, Hugging Face repositories and URLs behind one interface: which folders there are, get their files.

A place is a root and a pattern of folders below it. Folder names are relative to the root, "" is the root itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import Any, Protocol

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import DryRunError
from xxhash import xxh3_64_hexdigest, xxh3_128

from tasks.errors import BadInput, TransientError
from tasks.models import hub, remote
from tasks.models.cache import build_once, file_digest
from tasks.models.sources import Source
from tasks.places.location import refuse_credentials
from tasks.places.opening import LOCAL, open_location, scheme_of
from tasks.places.patterns import matching, split_pattern

FIELD = "saes.location"

_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?P<folder>.+))?")


class Place(Protocol):
    pattern: str
    """Folder asked for, relative to the root, perhaps with wildcards; "" when only the root was named."""

    def folders(self, pattern: str, marker: str) -> list[str]:
        """Folders that match `pattern` and hold the file `marker`, sorted."""

    def fetch(self, folder: str, files: Sequence[str]) -> Path:
        """A local folder with these files of `folder`."""

    def fingerprint(self, folder: str, files: Sequence[str]) -> str:
        """Changes iff the content of the files does (of a Hugging Face repository: iff its commit does)."""


def parse(location: str, revision: str | None) -> Place:
    """The place that a location (with the layer filled in) means. Raises BadInput for one that means none."""
    refuse_credentials(location, FIELD)
    location = location.rstrip("/")
    if scheme_of(location) not in LOCAL:
        fs, _ = open_location(location, FIELD)
        source = Source("url", location, FIELD)
        return UrlPlace(*remote.persistently(source, lambda: split_pattern(fs, location)))
    fs, path = open_location(location, FIELD)
    root, pattern = split_pattern(fs, path)
    if Path(root).is_dir():
        return LocalPlace(Path(root).resolve(), pattern)
    match = None if location.startswith(("/", ".", "~", "file://")) else _HUB.fullmatch(location)
    if match is None:
        raise BadInput(FIELD, location, "is neither an existing folder nor organization/name nor a URL", "check it")
    return HubPlace(match["repo"], revision, match["folder"] or "")


@dataclass(frozen=True)
class LocalPlace:
    root: Path
    pattern: str

    def folders(self, pattern: str, marker: str) -> list[str]:
        return _folders(LocalFileSystem(), str(self.root), pattern, marker)

    def fetch(self, folder: str, files: Sequence[str]) -> Path:
        return self.root / folder

    def fingerprint(self, folder: str, files: Sequence[str]) -> str:
        digest = xxh3_128()
        for name in files:
            digest.update(f"{name}\0{file_digest(self.root / folder / name)}\0".encode())
        return f"folder-{digest.hexdigest()}"


@dataclass(frozen=True)
class HubPlace:
    repo: str
    revision: str | None
    pattern: str

    @property
    def _source(self) -> Source:
        return Source("hub", self.repo, FIELD, self.revision)

    def folders(self, pattern: str, marker: str) -> list[str]:
        wanted = _join(pattern, marker)
        with hub.errors_of(self._source, wanted):
            try:
                listed = snapshot_download(self.repo, revision=self.revision, allow_patterns=[wanted], dry_run=True)
                names = [file.filename for file in listed]
            except DryRunError:  # the hub cannot be reached: what the local cache has
                cached = Path(snapshot_download(self.repo, revision=self.revision, allow_patterns=[wanted]))
                names = [path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.is_file()]
        # the hub's wildcards match slashes too
        found = [name for name in names if name.count("/") == wanted.count("/") and fnmatchcase(name, wanted)]
        return sorted(_parent(name, marker) for name in found)

    def fetch(self, folder: str, files: Sequence[str]) -> Path:
        paths = [_join(folder, name) for name in files]
        with hub.errors_of(self._source, folder or "its files"):
            return Path(snapshot_download(self.repo, revision=self.revision, allow_patterns=paths)) / folder

    def fingerprint(self, folder: str, files: Sequence[str]) -> str:
        with hub.errors_of(self._source, folder or "its files"):
            file = Path(hf_hub_download(self.repo, _join(folder, files[0]), revision=self.revision))
        return f"hub-{hub.commit_of(file)}-{folder}"


@dataclass(frozen=True)
class UrlPlace:
    root: str
    pattern: str

    @property
    def _source(self) -> Source:
        return Source("url", self.root, FIELD)

    def folders(self, pattern: str, marker: str) -> list[str]:
        fs, root = self._open()
        return remote.persistently(self._source, lambda: _folders(fs, root, pattern, marker))

    def fetch(self, folder: str, files: Sequence[str]) -> Path:
        fs, root = self._open()

        def download(into: Path) -> None:
            for name in files:
                target = into / below / name
                target.parent.mkdir(parents=True, exist_ok=True)
                path = _join(_join(root, folder), name)
                remote.persistently(self._source, partial(fs.get_file, path, str(target)))
            if self.fingerprint(folder, files) != before:
                raise TransientError(f"{self.root}/{folder} changed while it was downloaded")

        before = self.fingerprint(folder, files)
        below = _join(root, folder).strip("/")  # some formats name the layer in the path only
        # of the place too: files of one content lie in many folders, as the configurations of all layers often do
        return build_once(f"saes/{before}-{xxh3_64_hexdigest(below.encode())}", download) / below

    def fingerprint(self, folder: str, files: Sequence[str]) -> str:
        fs, root = self._open()
        digest = xxh3_128()
        for name in files:
            path = _join(_join(root, folder), name)
            info = remote.persistently(self._source, partial(_fresh_info, fs, path))
            digest.update(f"{name}\0{info['size']}\0{remote.content_tag(fs, info)}\0".encode())
        return f"url-{digest.hexdigest()}"

    def _open(self) -> tuple[AbstractFileSystem, str]:
        fs, root = open_location(self.root, FIELD)
        return fs, root.rstrip("/")


def _folders(fs: AbstractFileSystem, root: str, pattern: str, marker: str) -> list[str]:
    wanted = _join(pattern, marker)
    if has_magic(wanted):
        found = list(matching(fs, root, wanted))
    else:
        found = [wanted] if _is_file(fs, _join(root.rstrip("/"), wanted)) else []
    return sorted(_parent(path, marker) for path in found)


def _is_file(fs: AbstractFileSystem, path: str) -> bool:
    """Raises what the filesystem does, other than its own `isfile`, which takes every failure for a no."""
    try:
        return fs.info(path)["type"] == "file"
    except (FileNotFoundError, NotADirectoryError):
        return False


def _fresh_info(fs: AbstractFileSystem, path: str) -> dict[str, Any]:
    fs.invalidate_cache()
    return fs.info(path)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _parent(path: str, marker: str) -> str:
    return path.removesuffix(marker).rstrip("/")
