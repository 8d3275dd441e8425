"""Runs one shard: checks its spec, calls its function, commits its manifest."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tasks import provenance, registry
from tasks.artifacts.catalog import find_finished, store_spec
from tasks.artifacts.manifest import Manifest, write_manifest
from tasks.artifacts.store import Store
from tasks.context import Runtime, ShardContext
from tasks.gpus import check_device
from tasks.progress import Report, silent
from tasks.spec import TaskKind, TaskSpec

__all__ = ["Runtime", "run_shard", "store_spec"]


def run_shard(store: Store, spec: TaskSpec, runtime: Runtime | None = None, report: Report = silent) -> Manifest:
    """Compute a shard, or what is missing of it, and return its manifest.

    A finished shard is not computed again unless its kind always runs.

    Raises:
        BadInput: the spec can't be run by this code, or the task refuses its input.
        TransientError: a fault that may pass.
    """
    runtime = runtime or Runtime()
    kind, params = registry.resolve(spec)
    report({"event": "started", "task": spec.task, "spec_hash": spec.hash, "device": runtime.device})
    manifest = None if kind.always_run else find_finished(store, spec)
    reused = manifest is not None
    if manifest is None:
        context = ShardContext(store, spec, params, runtime, report, resume=not kind.always_run)
        manifest = _compute(context, kind)
    report(
        {
            "event": "finished",
            "shard": spec.path,
            "digest": manifest.digest,
            "counts": manifest.counts,
            "reused": reused,
        }
    )
    return manifest


def _compute(context: ShardContext, kind: TaskKind) -> Manifest:
    check_device(context.runtime.device)
    started, clock = datetime.now(UTC), time.monotonic()
    _entry(kind)(context)
    outputs, counts = context.results()
    run = {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "timings": {
            "total_seconds": round(time.monotonic() - clock, 3),
            "writing_seconds": round(context.writing_seconds, 3),
        },
        "reused_chunks": context.reused_chunks,
        "host": provenance.host(),
        "image": provenance.image(),
        "device": context.runtime.device,
        "device_name": provenance.device_name(context.runtime.device),
        "capability": provenance.processor(context.runtime.device).get("capability"),
        "batch_size": context.runtime.batch_size,
        "threads": context.runtime.threads,
        "versions": provenance.versions(),
        "peak_memory": provenance.peak_memory(),
        "notes": context.notes,
    }
    manifest = Manifest.of(context.spec, outputs, counts, run)
    other = find_finished(context.store, context.spec)
    if other and (not kind.always_run or other.digest == manifest.digest):
        return other  # of another writer, or as it was: what already depends on its manifest stays valid
    write_manifest(context.store, manifest)
    return manifest


def _entry(kind: TaskKind) -> Callable[[ShardContext], Any]:
    module, _, function = kind.entry.partition(":")
    return getattr(importlib.import_module(module), function)
