"""A shard with the outputs that a test gives: `TOMOGRAPH_PLUGINS=tests.outliers.given`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from tasks.context import ShardContext
from tasks.outliers.tables import TABLES
from tasks.spec import TaskKind

DECLARED = {table.name: table for table in TABLES}


class GivenParams(BaseModel):
    tables: dict[str, list[dict[str, Any]]] = {}
    jsons: dict[str, Any] = {}


def run(ctx: ShardContext) -> None:
    for name, rows in ctx.params.tables.items():
        ctx.table(name, DECLARED[name].from_rows(rows))
    for name, value in ctx.params.jsons.items():
        ctx.json(name, value)


GIVEN = TaskKind("given.outputs", 1, GivenParams, "tests.outliers.given:run")
KINDS = (GIVEN,)
