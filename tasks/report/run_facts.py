"""How a study ran, from its manifests: times, memory, devices, versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tasks.artifacts.shard import Shard
from tasks.report.records import RunFacts, StageRun


def run_facts(stages: Iterable[tuple[str, Sequence[Shard]]]) -> RunFacts:
    """Facts of each stage and of all together, from the `run` part of the manifests."""
    stages = [(name, [shard.manifest.run for shard in shards]) for name, shards in stages]
    runs = [run for _, several in stages for run in several]
    versions: dict[str, set[str]] = {}
    for run in runs:
        for name, version in run.get("versions", {}).items():
            versions.setdefault(name, set()).add(version)
    return RunFacts(
        stages=[_stage(name, several) for name, several in stages],
        engines=sorted({_engine(run["notes"]["engine"]) for run in runs if "engine" in run.get("notes", {})}),
        versions={name: sorted(found) for name, found in sorted(versions.items())},
        hosts=sorted({run["host"] for run in runs if run.get("host")}),
    )


def _stage(name: str, runs: Sequence[dict[str, Any]]) -> StageRun:
    seconds = [run["timings"]["total_seconds"] for run in runs if "total_seconds" in run.get("timings", {})]
    return StageRun(
        stage=name,
        shards=len(runs),
        seconds=sum(seconds) if seconds else None,
        reused_chunks=sum(run.get("reused_chunks", 0) for run in runs),
        peak_memory_bytes=_peak(runs, "process_bytes"),
        peak_gpu_bytes=_peak(runs, "cuda_bytes"),
        devices=sorted({_device(run) for run in runs if run.get("device")}),
    )


def _engine(facts: dict[str, Any]) -> str:
    return f"{facts['name']} {facts['version']} with up to {facts['batch_size']} trials at a time"


def _peak(runs: Sequence[dict[str, Any]], kind: str) -> int | None:
    return max((run["peak_memory"][kind] for run in runs if kind in run.get("peak_memory", {})), default=None)


def _device(run: dict[str, Any]) -> str:
    name = run.get("device_name")
    return f"{run['device']} ({name})" if name else run["device"]
