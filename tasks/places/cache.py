"""Folders that are built once per machine: downloads and conversions, in $TOMOGRAPH_CACHE or ~/.cache/tomograph."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from xxhash import xxh3_64_hexdigest, xxh3_128

_CHUNK = 4 * 2**20
_RACY_NS = 2 * 10**9


def cache_root() -> Path:
    return Path(os.environ.get("TOMOGRAPH_CACHE") or "~/.cache/tomograph").expanduser()


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The cache's folder `name`, made by `build(empty_folder)` unless it exists.

    It appears whole or not at all: `build` works in a temporary folder that is renamed when done. Processes that
    want the same folder wait for the one that builds it; what a killed builder left behind is removed.
    """
    folder = cache_root() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                build(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def file_digest(path: Path) -> str:
    """xxh3_128 of a file's content, remembered by (path, size, modification time).

    A file changed within the last two seconds is not remembered: another change might leave its time as it is.
    """
    before = path.stat()
    identity = [str(path.resolve()), before.st_size, before.st_mtime_ns]
    record = cache_root() / "digests" / f"{xxh3_64_hexdigest(identity[0].encode())}.json"
    known = _read_json(record)
    if known is not None and known["identity"] == identity:
        return known["digest"]
    digest = xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if time.time_ns() - before.st_mtime_ns > _RACY_NS:
        record.parent.mkdir(parents=True, exist_ok=True)
        partial = record.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"identity": identity, "digest": digest.hexdigest()}))
        partial.replace(record)
    return digest.hexdigest()


def _read_json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
