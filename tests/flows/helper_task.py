"""A task that starts a helper and forgets it."""

from __future__ import annotations

import subprocess

from pydantic import BaseModel

from tasks.context import ShardContext
from tasks.spec import TaskKind


class NoParams(BaseModel):
    pass


def run(ctx: ShardContext) -> None:
    subprocess.Popen(["sleep", "600"])
    ctx.json("done", True)


KINDS = (TaskKind("toy.helper", 1, NoParams, "tests.flows.helper_task:run"),)
