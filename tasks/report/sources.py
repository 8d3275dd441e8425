"""Where a report's content comes from: the shards behind it, and the settings that were asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

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


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """{"trials": {"top_p": 1}} -> ("trials.top_p", "1")."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)
