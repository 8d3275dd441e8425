"""Whether a store holds what its manifests promise: every object read and compared with its checksum."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tasks.artifacts.chunks import FOLDER, read_record
from tasks.artifacts.manifest import MANIFEST, Manifest, Output, read_manifest
from tasks.artifacts.store import ObjectRef, Store
from tasks.errors import BadInput, CorruptObject
from tasks.spec import TaskSpec

READERS = 16
CHECKED_BYTES = 2**28
"""Read at most for the check of a report that is reused."""
_SHARD = re.compile(r"(shards/[^/]+/[^/]+)/(.+)")


@dataclass(frozen=True)
class Damage:
    shard: str
    name: str
    """Of the object, in the folder of the shard."""
    problem: str
    there: bool
    """Whether there is something to remove."""


def verify(store: Store, say: Callable[[str], None]) -> list[Damage]:
    """What is damaged or missing, of all shards, finished or not. ``say`` is told how far it is.

    Raises:
        BadInput: the store holds no shard.
    """
    shards: dict[str, dict[str, int]] = {}
    for path, size in store.sizes("shards").items():
        if match := _SHARD.fullmatch(path):
            shards.setdefault(match[1], {})[match[2]] = size
    if not shards:
        raise BadInput("store", store.url, "holds no shards", "give the store of a study: the folder or URL of --store")
    found: list[Damage] = []
    for number, (shard, sizes) in enumerate(sorted(shards.items()), start=1):
        say(f"{number} of {len(shards)}: {shard}")
        found += _verify(store, shard, sizes)
    return found


def repair(store: Store, found: Iterable[Damage]) -> None:
    """Remove what is damaged: the next run of its study computes that again, and nothing else."""
    for one in found:
        if one.there:
            store.remove(f"{one.shard}/{one.name}")


def check_small(store: Store, spec: TaskSpec) -> None:
    """Compare a finished shard and all its inputs with their checksums, smallest objects first, up to CHECKED_BYTES.

    Raises:
        CorruptObject: naming the first object that is not what was written, and the remedy.
    """
    refs = [ref for given in spec.inputs.values() for ref in (given if isinstance(given, list) else [given])]
    with ThreadPoolExecutor(READERS) as pool:
        manifests = list(pool.map(lambda shard: read_manifest(store, shard), [spec.path, *(ref.shard for ref in refs)]))
        objects = [(ref.size, manifest.spec.path, ref) for manifest in manifests for ref in _refs(manifest.outputs)]
        chosen, left = [], CHECKED_BYTES
        for size, shard, ref in sorted(objects, key=lambda one: one[:2]):
            left -= size
            if left < 0:
                break
            chosen.append((shard, ref))
        for problem in pool.map(lambda one: _problem(store.at(one[0]), one[1]), chosen):
            if problem:
                raise CorruptObject(f"{problem}; `python -m tasks verify {store.url} --repair` removes what is damaged")


def _verify(store: Store, shard: str, sizes: Mapping[str, int]) -> list[Damage]:
    folder, found = store.at(shard), []
    refs: dict[str, ObjectRef] = {}

    def note(name: str, problem: str) -> None:
        found.append(Damage(shard, name, problem, there=name in sizes))

    if MANIFEST in sizes:
        try:
            manifest: Manifest = read_manifest(store, shard)
            refs |= {ref.path: ref for ref in _refs(manifest.outputs)}
        except CorruptObject as error:
            note(MANIFEST, str(error))
    for name in sorted(name for name in sizes if name.startswith(f"{FOLDER}/")):
        try:
            refs |= {ref.path: ref for ref in _refs(read_record(folder, name).outputs)}
        except CorruptObject as error:
            note(name, str(error))
    with ThreadPoolExecutor(READERS) as pool:
        problems = pool.map(lambda ref: _problem(folder, ref), refs.values())
        for ref, problem in zip(refs.values(), problems, strict=True):
            if problem:
                note(ref.path, problem)
    return found


def _refs(outputs: Mapping[str, Output]) -> list[ObjectRef]:
    return [ref for output in outputs.values() for ref in output.objects]


def _problem(folder: Store, ref: ObjectRef) -> str | None:
    try:
        folder.get_object(ref)
    except CorruptObject as error:
        return str(error).partition(";")[0]
    return None
