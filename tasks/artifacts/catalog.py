"""Which shards a store has: their specs, and the manifests of those that are finished. Imports nothing heavy."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tasks.artifacts.manifest import Manifest, parse_record, read_manifest
from tasks.artifacts.store import Store, pretty_json
from tasks.errors import BadInput, CorruptObject
from tasks.spec import TaskSpec

log = logging.getLogger("tomograph.store")

SPEC = "spec.json"
READERS = 32


def store_spec(store: Store, spec: TaskSpec) -> str:
    """Write a spec to its place and return its URL, which ``python -m tasks run`` takes."""
    path = f"{spec.path}/{SPEC}"
    store.ensure_bytes(path, pretty_json(spec.model_dump(mode="json")))
    return store.url_of(path)


def split_spec_url(url: str) -> tuple[str, str]:
    """The store's URL and the spec's path in it.

    Raises:
        BadInput: ``url`` is not the place of a spec.
    """
    match = re.fullmatch(r"(?:(.*)/)?(shards/[^/]+/[^/]+/spec\.json)", url)
    if match is None:
        raise BadInput("spec", url, "is not the place of a spec", "use STORE/shards/<task>/<hash>/spec.json")
    return match[1] or ".", match[2]


def load_spec(store: Store, path: str) -> TaskSpec:
    """The spec at ``path``, relative to the store.

    Raises:
        BadInput: there is none.
        CorruptObject: it is no spec, or lies in another spec's place.
    """
    url = store.url_of(path)

    def parsed(data: bytes) -> TaskSpec:
        spec = parse_record(TaskSpec, data, url)
        if path != f"{spec.path}/{SPEC}":
            raise CorruptObject(f"{url} does not match its place: its content hashes to {spec.path}")
        return spec

    try:
        return store.read_verified(path, parsed)
    except FileNotFoundError as error:
        raise BadInput("spec", url, "there is no such spec", "correct the URL") from error


def finished(store: Store, specs: Iterable[TaskSpec]) -> dict[str, Manifest]:
    """Manifests of the finished shards among ``specs``, by spec hash.

    A shard counts as finished when its manifest is sound and every object it names is there with its size.
    Kinds that always run are reported like all others.
    """
    wanted = {spec.hash: spec for spec in specs}
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda spec: find_finished(store, spec), wanted.values())
        return {key: manifest for key, manifest in zip(wanted, found, strict=True) if manifest}


def find_finished(store: Store, spec: TaskSpec) -> Manifest | None:
    """The manifest of a finished shard, or None with the reason in the log."""
    try:
        manifest = read_manifest(store, spec.path)
    except FileNotFoundError:
        return None
    except CorruptObject as error:
        log.warning("%s; the shard is computed anew", error)
        return None
    if missing := manifest.missing(store.at(spec.path).sizes()):
        log.warning("%s lacks %s; the shard is completed", store.url_of(spec.path), ", ".join(missing))
        return None
    return manifest
