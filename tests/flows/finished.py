"""What a finished study left in its store, by the names under which its report has it."""

from __future__ import annotations

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.spec import InputRef


def finished_stages(store: Store) -> dict[str, list[Shard]]:
    """The shards that the one report in ``store`` was made from."""
    [folder] = {name.rpartition("/")[0] for name in store.list("shards") if _is_of_a_report(name)}
    inputs = Shard(store, folder).manifest.spec.inputs
    return {
        name: [Shard.open(store, ref) for ref in ([refs] if isinstance(refs, InputRef) else refs)]
        for name, refs in inputs.items()
    }


def _is_of_a_report(name: str) -> bool:
    """``name`` is relative to the store: shards/<task>/<hash>/manifest.json"""
    return name.endswith("/manifest.json") and "report" in name.split("/")[1]
