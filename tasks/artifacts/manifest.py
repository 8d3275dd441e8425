"""What a shard says about itself: its outputs, their checksums, and how they came to be.

A manifest is written last. Objects that no manifest names don't exist for a reader.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.artifacts.store import ObjectRef, Store, pretty_json
from tasks.errors import CorruptObject
from tasks.spec import InputRef, TaskSpec, canonical_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

RecordT = TypeVar("RecordT", bound=BaseModel)

OutputKind = Literal["table", "tensors", "json", "file"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorInfo(_Record):
    """``dtype`` in the names of safetensors (``F32``, ``BF16``, ...); chunks are joined along axis 0."""

    dtype: str
    shape: list[int]


class Output(_Record):
    """One named output, in one object or (tables and tensors) several in order."""

    kind: OutputKind
    objects: list[ObjectRef]
    rows: int | None = None
    columns: dict[str, str] | None = None
    """Arrow type of each column, for tables."""
    tensors: dict[str, TensorInfo] | None = None


class Manifest(_Record):
    """The commit of a shard. All but ``run`` follows from the spec."""

    schema_version: int = SCHEMA_VERSION
    spec: TaskSpec
    spec_hash: str
    outputs: dict[str, Output]
    counts: dict[str, int]
    seeds: dict[str, int]
    digest: str
    """SHA-256 over outputs and counts: what shards that read this one depend on."""
    run: dict[str, Any]
    """Versions, host, device, timings, memory: how this result came to be, and nothing that decides it."""

    @classmethod
    def of(
        cls, spec: TaskSpec, outputs: Mapping[str, Output], counts: Mapping[str, int], run: Mapping[str, Any]
    ) -> Manifest:
        return cls(
            spec=spec,
            spec_hash=spec.hash,
            outputs=dict(outputs),
            counts=dict(counts),
            seeds={"shard": spec.seed},
            digest=digest_of(outputs, counts),
            run=dict(run),
        )

    @property
    def ref(self) -> InputRef:
        """This shard as another one's input."""
        return InputRef(shard=self.spec.path, digest=self.digest)

    def missing(self, sizes: Mapping[str, int]) -> list[str]:
        """Objects that are absent, or have another size, in a listing of the shard's folder."""
        return missing_objects(self.outputs, sizes)


def digest_of(outputs: Mapping[str, Output], counts: Mapping[str, int]) -> str:
    """SHA-256 of what a shard holds."""
    content = {
        "outputs": {name: output.model_dump(mode="json") for name, output in outputs.items()},
        "counts": dict(counts),
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()


def missing_objects(outputs: Mapping[str, Output], sizes: Mapping[str, int]) -> list[str]:
    refs = (ref for output in outputs.values() for ref in output.objects)
    return [ref.path for ref in refs if sizes.get(ref.path) != ref.size]


def read_manifest(store: Store, shard: str) -> Manifest:
    """The manifest of the shard in folder ``shard``.

    Raises:
        FileNotFoundError: the shard is not finished.
        CorruptObject: the manifest contradicts itself or the folder it lies in.
    """
    path = f"{shard}/{MANIFEST}"
    url = store.url_of(path)

    def parsed(data: bytes) -> Manifest:
        manifest = parse_record(Manifest, data, url)
        if manifest.spec.path != shard or manifest.spec_hash != manifest.spec.hash:
            raise CorruptObject(f"{url} belongs to another shard, {manifest.spec.path}")
        if manifest.digest != digest_of(manifest.outputs, manifest.counts):
            raise CorruptObject(f"{url} does not match its own digest; remove it and run again")
        return manifest

    return store.read_verified(path, parsed)


def write_manifest(store: Store, manifest: Manifest) -> None:
    path = f"{manifest.spec.path}/{MANIFEST}"
    store.write_bytes(path, pretty_json(manifest.model_dump(mode="json")))


def parse_record(model: type[RecordT], data: bytes, url: str) -> RecordT:
    """A stored record. Raises: CorruptObject."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CorruptObject(
            f"{url} is no valid {model.__name__.lower()} ({where}: {first['msg']}); remove it and run again"
        ) from error


def check_name(name: str) -> str:
    """``name`` if an output can be called so. Raises: ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"output name {name!r}: use letters, digits, '.', '_' and '-'")
    return name


def join_outputs(parts: Iterable[Mapping[str, Output]]) -> dict[str, Output]:
    """The outputs of chunks, in order, as the outputs of their shard. Raises: ValueError."""
    pieces: dict[str, list[Output]] = {}
    for part in parts:
        for name, output in part.items():
            pieces.setdefault(name, []).append(output)
    return {name: join(name, outputs) for name, outputs in pieces.items()}


def join(name: str, pieces: Sequence[Output]) -> Output:
    """The pieces of the output ``name``, one after the other.

    Raises:
        ValueError: they have different kinds, columns, types or shapes.
    """
    first, *others = pieces
    if not others:
        return first
    if first.kind not in ("table", "tensors"):
        raise ValueError(f"output {name!r} was given twice")
    for other in others:
        if _form(other) != _form(first) or None in _form(other):
            raise ValueError(f"output {name!r} has different pieces: {_describe(first)} and {_describe(other)}")
    rows = [piece.rows for piece in pieces]
    return Output(
        kind=first.kind,
        objects=[ref for piece in pieces for ref in piece.objects],
        rows=None if None in rows else sum(rows),
        columns=first.columns,
        tensors=_join_tensors(pieces) if first.kind == "tensors" else None,
    )


def _join_tensors(pieces: Sequence[Output]) -> dict[str, TensorInfo]:
    infos = [piece.tensors or {} for piece in pieces]
    return {
        key: TensorInfo(dtype=one.dtype, shape=[sum(info[key].shape[0] for info in infos), *one.shape[1:]])
        for key, one in infos[0].items()
    }


def _form(output: Output) -> tuple[Any, ...]:
    """What pieces of one output have in common; it holds None where a tensor has no axis to join along."""
    if output.kind == "table":
        return "table", output.columns
    infos = sorted((output.tensors or {}).items())
    return output.kind, *((key, info.dtype, info.shape[1:]) if info.shape else None for key, info in infos)


def _describe(output: Output) -> str:
    if output.tensors is not None:
        return ", ".join(f"{key} {info.dtype}{info.shape}" for key, info in output.tensors.items())
    return str(output.columns or output.kind)
