"""Where a report's content comes from: the shards behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tasks.artifacts.shard import Shard
from tasks.report.records import Source


def sources(stages: Iterable[tuple[str, Sequence[Shard]]]) -> list[Source]:
    """The shards behind the report, by stage."""
    return [
        Source(
            stage=stage,
            shards=len(shards),
            counts=totals(shards),
            digests=[shard.manifest.digest for shard in shards],
        )
        for stage, shards in stages
    ]


def totals(shards: Sequence[Shard]) -> dict[str, int]:
    """The counts of several manifests, added up."""
    added: dict[str, int] = {}
    for shard in shards:
        for name, n in shard.manifest.counts.items():
            added[name] = added.get(name, 0) + n
    return dict(sorted(added.items()))
