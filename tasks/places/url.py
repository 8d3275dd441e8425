"""Folders behind an fsspec URL: s3://, gs://, hf://, https:// and whatever else fsspec speaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from xxhash import xxh3_64_hexdigest, xxh3_128

from tasks.errors import TransientError
from tasks.places.cache import build_once
from tasks.places.opening import open_location
from tasks.places.patient_file import persistently
from tasks.places.place import Files, Place, Wanted, folders_in, is_file, join

_CONTENT_TAGS = ("md5Hash", "crc32c", "ETag", "etag", "content_md5", "blob_id")
"""Keys under which file systems report something that changes with an object's content, best first."""
_CHUNK = 4 * 2**20

NOTHING_THERE = ("there is nothing at this URL", "check bucket and path")
"""What `persistently` says of a URL."""

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    name: str
    path: str
    """As its file system calls it."""
    size: int
    tag: str
    """Changes when the content does: what the store reports, else a checksum of the content."""


@dataclass(frozen=True)
class UrlFolder(Place):
    names_file: bool = False
    """`location` is the URL of a file; the place is the folder that it lies in."""
    keeps_path: bool = False
    """A download ends in the path that it has at the URL, for formats that name a layer there only."""

    def has(self, name: str) -> bool:
        fs, root = self._open()
        return self._persistently(lambda: is_file(fs, join(root, name)))

    def read(self, name: str) -> bytes:
        fs, root = self._open()
        return self._persistently(lambda: fs.cat_file(join(root, name)))

    def folders(self, pattern: str, marker: str) -> list[str]:
        fs, root = self._open()
        return self._persistently(lambda: folders_in(fs, root, pattern, marker))

    def fetch(self, files: Files, folder: str = "") -> Path:
        """Downloaded once into a cache folder named by what they are.

        Raises TransientError when an object changes on the way or arrives incomplete.
        """
        listed = self._list(files, folder)
        fs, root = self._open()
        path = join(root, folder).strip("/") if self.keeps_path else ""

        def download(into: Path) -> None:
            for file in listed:
                target = into / path / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                self._persistently(partial(fs.get_file, file.path, str(target)))
            if self._list(files, folder) != listed:
                raise TransientError(f"{join(self.location, folder)} changed while it was downloaded")
            for file in listed:
                if (into / path / file.name).stat().st_size != file.size:
                    raise TransientError(f"{file.path} arrived incomplete")

        if not self.keeps_path:
            return build_once(f"models/{_digest(listed)}", download)
        # of the path too: files of one content lie in many folders, as the configurations of all layers often do
        return build_once(f"saes/url-{_digest(listed)}-{xxh3_64_hexdigest(path.encode())}", download) / path

    def fingerprint(self, files: Files, folder: str = "") -> str:
        return f"url-{self.digest(files, folder)}"

    def digest(self, files: Files, folder: str = "") -> str:
        """Of their names, sizes and tags."""
        return _digest(self._list(files, folder))

    def _list(self, files: Files, folder: str) -> list[RemoteFile]:
        """The files as the store has them now. Raises BadInput when there are none."""
        fs, root = self._open()
        at = join(root, folder)

        def listing() -> list[RemoteFile]:
            fs.invalidate_cache()
            if isinstance(files, Wanted):
                found = {i["name"].rpartition("/")[2]: i for i in fs.ls(at, detail=True) if i["type"] == "file"}
                infos = {name: found[name] for name in files.among(found)}
            else:
                infos = {name: fs.info(join(at, name)) for name in files}
            return [RemoteFile(name, i["name"], i["size"], _content_tag(fs, i)) for name, i in infos.items()]

        listed = self._persistently(listing)
        if not listed:
            raise self.bad(f"there is no {files.what} in this folder", "check the URL")
        return listed

    def _persistently(self, action: Callable[[], T]) -> T:
        return persistently(action, self.location, self.field, *NOTHING_THERE)

    def _open(self) -> tuple[AbstractFileSystem, str]:
        """The URL's file system and the folder's path there."""
        fs, path = open_location(self.location, self.field)
        return fs, path.rpartition("/")[0] if self.names_file else path.rstrip("/")


def _digest(files: list[RemoteFile]) -> str:
    digest = xxh3_128()
    for file in files:
        digest.update(f"{file.name}\0{file.size}\0{file.tag}\0".encode())
    return digest.hexdigest()


def _content_tag(fs: AbstractFileSystem, info: dict[str, Any]) -> str:
    """What the file system reports that changes with a file's content, else a checksum of the content."""
    for key in _CONTENT_TAGS:
        if info.get(key):
            return f"{key}:{info[key]}"
    digest = xxh3_128()
    with fs.open(info["name"], "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return f"xxh3_128:{digest.hexdigest()}"
