"""A flow over the toy tasks, for tests of the fan-out. Run as a script, it is a flow process to be killed."""

from __future__ import annotations

import asyncio
import json
import sys

from prefect import flow

from flows.execution import Execution
from flows.fanout import FanOut, sweep
from tasks.artifacts.store import Store
from tests.toy_tasks import KINDS, CheckParams, SquaresParams, SumParams

BY_NAME = {kind.name: kind for kind in KINDS}
SQUARES, SUM, CHECK = BY_NAME["toy.squares"], BY_NAME["toy.sum"], BY_NAME["toy.check"]


@flow(name="toy", on_cancellation=[sweep], on_crashed=[sweep])
async def toy(
    store: str,
    squares: list[SquaresParams],
    execution: Execution,
    check: str | None = None,
) -> dict[str, int]:
    """Squares in parallel, then their sum; ``check`` is a file whose size is looked at first, every time."""
    target = Store(store)
    async with FanOut(target, execution, stages=("check", "squares", "sum")) as fan:
        if check:
            await fan.run("check", [CHECK.spec(CheckParams(path=check))], gpus=0)
        parts = await fan.run("squares", [SQUARES.spec(params, seed=i) for i, params in enumerate(squares)])
        fan.tell(f"there are {len(parts)} lists of squares")
        [total] = await fan.run("sum", [SUM.spec(SumParams(), {"squares": [part.ref for part in parts]})], check=True)
    return total.counts


if __name__ == "__main__":
    print(asyncio.run(toy(**json.loads(sys.argv[1]))))
