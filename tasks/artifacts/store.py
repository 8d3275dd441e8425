"""The store: objects below one URL, on a local disk, in S3 or wherever fsspec reaches.

Credentials and endpoints follow each ecosystem's own conventions (for S3: ``AWS_PROFILE``,
``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...; for all of fsspec: ``FSSPEC_*`` variables and
``~/.config/fsspec``) and never enter a URL, a spec or a manifest.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import xxhash
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict

from tasks.artifacts.backend import Backend, Buffer
from tasks.artifacts.local import LocalBackend
from tasks.artifacts.retry import UNREACHED_PATIENCE_SECONDS, persist
from tasks.artifacts.s3 import S3Backend
from tasks.errors import CorruptObject, TransientError
from tasks.places.opening import open_location

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
NAME_HASH_LENGTH = 16
SAME_READS = 3
"""An object that is read so often with one wrong content is damaged itself, not on the way."""


class ObjectRef(BaseModel):
    """An object and what it must be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """Relative to the folder of the shard."""
    size: int
    xxh3_128: str
    rows: int | None = None


class Store:
    """Objects below ``url``: a local path, ``file://``, ``s3://bucket/prefix``, ``memory://`` and the like.

    ``storage_options`` go to the fsspec filesystem. Passing faults are met with retries for ``patience``
    seconds.

    Every method raises ``StoreError`` when the store can't be used as it is (no bucket, credentials,
    permission or space) and ``TransientError`` when a passing fault did not pass.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
        *,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.patience = patience
        self._fs, root = open_location(os.fspath(url), "store", "s3://bucket/prefix", **(storage_options or {}))
        self._root = root.rstrip("/") or root
        self._reached = threading.Event()
        self._local = isinstance(self._fs, LocalFileSystem)
        self._backend = _backend(self._fs)

    @property
    def url(self) -> str:
        """The store's address, an absolute path on a local disk."""
        return self._root if self._local else self._fs.unstrip_protocol(self._root)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def at(self, folder: str) -> Store:
        """The same store seen from one of its folders."""
        view = object.__new__(Store)
        view.__dict__.update(self.__dict__, _root=self._path(folder))
        return view

    def url_of(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}"

    def read_bytes(self, path: str) -> bytes:
        """Raises: FileNotFoundError."""
        return self._persist(path, lambda: self._fs.cat_file(self._path(path)))

    def write_bytes(self, path: str, data: Buffer) -> None:
        """Write a whole object: readers see the old one or the new one."""
        self._write(path, [data])

    def ensure_bytes(self, path: str, data: bytes) -> None:
        """Write a whole object unless it is there with this content: a store that has all may be read-only."""
        try:
            there = self.size(path) == len(data) and self.read_bytes(path) == data
        except FileNotFoundError:
            there = False
        if not there:
            self.write_bytes(path, data)

    def read_json(self, path: str) -> Any:
        """Raises: FileNotFoundError, CorruptObject."""

        def parsed(data: bytes) -> Any:
            try:
                return json.loads(data)
            except ValueError as error:
                raise CorruptObject(f"{self.url_of(path)} is not JSON: {error}") from error

        return self.read_verified(path, parsed)

    def write_json(self, path: str, value: Any) -> None:
        self.write_bytes(path, pretty_json(value))

    def exists(self, path: str) -> bool:
        return self.size(path) is not None

    def size(self, path: str) -> int | None:
        """Bytes of an object; None when there is none."""
        try:
            info = self._persist(path, lambda: self._fs.info(self._path(path)))
        except FileNotFoundError:
            return None
        return info["size"] if info["type"] == "file" else None

    def list(self, folder: str = "") -> list[str]:
        """Paths of all objects below a folder, sorted."""
        return sorted(self.sizes(folder))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Path and bytes of every object below a folder; paths are relative to the store."""
        try:
            found = self._backend.sizes(self._path(folder), partial(self._persist, folder))
        except FileNotFoundError:
            return {}
        start = len(self._root.rstrip("/")) + 1
        return {path[start:]: size for path, size in found.items()}

    def remove(self, path: str) -> None:
        """Remove an object, if it is there."""
        try:
            self._persist(path, lambda: self._fs.rm_file(self._path(path)))
        except FileNotFoundError:
            return

    def put_object(self, prefix: str, suffix: str, buffers: Sequence[Buffer], rows: int | None = None) -> ObjectRef:
        """Write ``buffers`` as one object named by its content: ``{prefix}-{hash}{suffix}``.

        Equal content has one name, so an object that is already there is not written again, and two writers
        never harm each other.
        """
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        checksum = xxhash.xxh3_128()
        for view in views:
            checksum.update(view)
        digest = checksum.hexdigest()
        path = f"{prefix}-{digest[:NAME_HASH_LENGTH]}{suffix}"
        size = sum(view.nbytes for view in views)
        if self.size(path) != size:
            self._write(path, views)
        return ObjectRef(path=path, size=size, xxh3_128=digest, rows=rows)

    def get_object(self, ref: ObjectRef) -> bytes:
        """The verified content of an object.

        Raises:
            CorruptObject: it is missing, or not what ``ref`` says.
        """
        url, remedy = self.url_of(ref.path), "remove it and run again: its chunk is computed anew"

        def checked(data: bytes) -> bytes:
            if len(data) != ref.size:
                raise CorruptObject(f"{url} has {len(data)} bytes, but was written with {ref.size}; {remedy}")
            if xxhash.xxh3_128_hexdigest(data) != ref.xxh3_128:
                raise CorruptObject(f"{url} has changed since it was written; {remedy}")
            return data

        try:
            return self.read_verified(ref.path, checked)
        except FileNotFoundError as error:
            raise CorruptObject(f"{url} is missing; run again") from error

    def read_verified(self, path: str, check: Callable[[bytes], T]) -> T:
        """``check`` of an object's content. What it refuses is read again: it may have been damaged on the way.

        Raises:
            FileNotFoundError: there is no such object.
            CorruptObject: of ``check``: the same came SAME_READS times, so it is what the store holds.
            TransientError: something else came each time, until patience ended.
        """
        came: Counter[str] = Counter()

        def attempt() -> T:
            data = self._fs.cat_file(self._path(path))
            try:
                return check(data)
            except CorruptObject as error:
                digest = xxhash.xxh3_128_hexdigest(data)
                came[digest] += 1
                if self._local or came[digest] == SAME_READS:
                    raise
                raise TransientError(f"what arrived is damaged ({error})") from None

        return self._persist(path, attempt)

    def remove_stale(self, folder: str = "") -> None:
        """Remove what killed writers left below a folder: temporary files and uploads that nobody goes on with."""
        self._backend.remove_stale(self._path(folder), partial(self._persist, folder))

    def _write(self, path: str, buffers: Sequence[Buffer]) -> None:
        self._backend.write(self._path(path), buffers, partial(self._persist, path))

    def _persist(self, path: str, action: Callable[[], T]) -> T:
        # one that never answered is most likely none; one that did is coming back
        unreached = self.patience if self._reached.is_set() else UNREACHED_PATIENCE_SECONDS
        try:
            result = persist(action, self.url_of(path), self.patience, unreached)
        except TransientError:
            raise
        except Exception:
            self._reached.set()
            raise
        self._reached.set()
        return result

    def _path(self, path: str) -> str:
        parts = path.split("/")
        if path.startswith("/") or ".." in parts:
            raise ValueError(f"{path!r} leaves the store {self.url}; give a path relative to it")
        return "/".join([self._root.rstrip("/"), path]) if path else self._root


def pretty_json(value: Any) -> bytes:
    """JSON for people and programs: sorted keys, indented, one newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _backend(fs: Any) -> Backend:
    if isinstance(fs, LocalFileSystem):
        return LocalBackend(fs)
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return S3Backend(fs) if "s3" in protocols else Backend(fs)
