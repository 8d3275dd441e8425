"""The one place that opens locations: a path or URL of any filesystem that fsspec speaks, taken literally."""

from __future__ import annotations

import os
import re
from typing import Any

import fsspec
import fsspec.config
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from tasks.errors import BadInput
from tasks.places.location import refuse_credentials

LOCAL = ("file", "local")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:.+")
S3 = ("s3", "s3a")
_WITH_BUCKETS = (*S3, "gs", "gcs")
S3_CONNECTIONS = 64


def open_location(
    location: str, field: str, example: str = "s3://bucket/path", **options: Any
) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a path or URL, and the path there. ``options`` go to the filesystem.

    Every character of a path or key means itself; ``::`` chains filesystems only where each part names one, as in
    ``zip://inner.txt::s3://bucket/archive.zip``.

    Raises:
        BadInput: of this ``field``: a URL with credentials, whose place is the environment, without a bucket that can
            be, or of a filesystem that isn't installed. ``example`` is a URL that would do.
    """
    refuse_credentials(location, field)
    scheme = scheme_of(location)
    if scheme in LOCAL:
        return LocalFileSystem(**options), local_path(location)
    try:
        if is_chain(location):
            return fsspec.url_to_fs(location, **options)
        kind = fsspec.get_filesystem_class(scheme)
        path = kind._strip_protocol(location)
        if scheme in _WITH_BUCKETS:
            _check_bucket(location, path, field)
        if scheme in S3:
            options = _s3_options(options)
        return kind(**(kind._get_kwargs_from_urls(location) | options)), path
    except BadInput:
        raise
    except (ImportError, ValueError) as error:
        remedy = f"use a local path, {example}, or a URL of an installed fsspec filesystem"
        raise BadInput(field, location, str(error), remedy) from error


def scheme_of(location: str) -> str:
    """ "s3" of "s3://bucket/x"; "file" of a path."""
    match = _SCHEME.match(location) or (_SCHEME.search(location) if is_chain(location) else None)
    return match[1].lower() if match else LOCAL[0]


def is_chain(location: str) -> bool:
    """Whether ``::`` in it joins filesystems."""
    first, *others = location.split("::")
    parts = [first, *others]
    return bool(others) and all(_SCHEME.match(part) or part in known_implementations for part in parts)


def local_path(location: str) -> str:
    """The absolute path that a path or a file:// URL means; nothing in it is quoted."""
    match = _SCHEME.match(location)
    path = location[match.end() :] if match else location
    return os.path.abspath(os.path.expanduser(path))


def _s3_options(options: dict[str, Any]) -> dict[str, Any]:
    """With what all uses of S3 here want: fresh listings, and no patience of the client's own below ours."""
    ours = {"max_pool_connections": S3_CONNECTIONS, "retries": {"total_max_attempts": 1, "mode": "standard"}}
    configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    config = ours | configured | options.get("config_kwargs", {})
    return {"use_listings_cache": False} | options | {"config_kwargs": config}


def _check_bucket(location: str, path: str, field: str) -> None:
    bucket = path.lstrip("/").partition("/")[0]
    if not bucket:
        raise BadInput(field, location, "names no bucket", "use s3://bucket/path")
    if not _BUCKET.fullmatch(bucket):
        problem = f"{bucket!r} can't be the name of a bucket"
        raise BadInput(field, location, problem, "use letters, digits, '.', '_' and '-', as the bucket is called")
