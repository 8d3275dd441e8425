"""Flow runs whose process was killed: Prefect goes on showing them as running, until the next run here says so.

A flow leaves a record in the runtime folder for as long as it runs: the id of its run, and the name of its process,
of which the kernel knows whether it lives (``flows.holders``).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.holders import holder, holder_lives, remove_dead
from flows.locks import make_folder, runtime_folder

KEPT_SECONDS = 7 * 24 * 3600
"""A record whose run the present server doesn't know may be another server's; then it is forgotten."""
MESSAGE = "its process was killed; a new run of the same study goes on from there"


@contextlib.contextmanager
def recorded(flow_run: str) -> Iterator[None]:
    """Within the body, the run is on record as this process's."""
    path = _folder() / f"{flow_run}.json"
    make_folder(path.parent)
    path.write_text(json.dumps({"holder": holder()}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def dead_runs() -> list[str]:
    """Ids of the runs on record whose process is dead. Removes what other dead processes left here."""
    remove_dead()
    return [path.stem for path in sorted(_folder().glob("*.json")) if not holder_lives(_holder_of(path))]


async def close_dead_runs() -> list[str]:
    """Tell the Prefect server of dead runs that it takes for running; returns their names."""
    runs = dead_runs()
    if not runs:
        return []
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    closed = []
    async with get_client() as client:
        for run in runs:
            path = _folder() / f"{run}.json"
            try:
                known = await client.read_flow_run(run)  # type: ignore[arg-type]
            except ObjectNotFound:
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                        path.unlink()
                continue
            if known.state is None or not known.state.is_final():
                await client.set_flow_run_state(known.id, Crashed(message=MESSAGE), force=True)
                closed.append(known.name)
            with contextlib.suppress(OSError):
                path.unlink()
    return closed


def _folder() -> Path:
    return runtime_folder() / "runs"


def _holder_of(path: Path) -> str:
    """The process that wrote a record; one that can't be read counts as living."""
    try:
        content: Any = json.loads(path.read_text())
        return str(content["holder"])
    except (OSError, ValueError, TypeError, KeyError):
        return holder()
