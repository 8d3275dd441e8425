"""Tasks for containers: one holds its imaginary GPUs and fails if somebody else does too, one eats memory."""

from __future__ import annotations

import fcntl
import os
import time

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from tasks.context import ShardContext
from tasks.spec import TaskKind

FOLDER = "/dev/imaginary-gpus"


class HoldParams(BaseModel):
    """How long each chunk holds the GPUs."""

    chunks: int = 2
    seconds: float = 0.1


class EatParams(BaseModel):
    """How much memory to take."""

    mebibytes: int


def hold(ctx: ShardContext) -> None:
    devices = [os.open(os.path.join(FOLDER, name), os.O_RDWR | os.O_APPEND) for name in sorted(os.listdir(FOLDER))]
    for device in devices:
        fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error where another container has it
        os.write(device, f"taken {ctx.spec.hash} {time.time()}\n".encode())
    for chunk in ctx.chunks(ctx.params.chunks):
        time.sleep(ctx.params.seconds)
        chunk.table("gpus", pa.table({"chunk": [chunk.index], "gpus": [len(devices)]}))
        chunk.commit()
        ctx.progress(chunk.index + 1, ctx.params.chunks, unit="chunks")
    for device in devices:
        os.write(device, f"left {ctx.spec.hash} {time.time()}\n".encode())


def eat(ctx: ShardContext) -> None:
    ctx.json("eaten", int(np.ones(ctx.params.mebibytes * 2**17).sum()))


KINDS = (
    TaskKind("gpu.hold", 1, HoldParams, "tests.containers.gpu_task:hold"),
    TaskKind("gpu.eat", 1, EatParams, "tests.containers.gpu_task:eat"),
)
