"""Small tasks for tests of the runner and of the flows: ``TOMOGRAPH_PLUGINS=tests.toy_tasks``."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from tasks.context import ShardContext
from tasks.errors import BadInput, TransientError
from tasks.spec import TaskKind


class SquaresParams(BaseModel):
    """Squares of 0 to n - 1. ``fail_at`` is the chunk in front of which the task fails as ``fail`` says."""

    n: int = Field(10, ge=0)
    chunk_size: int = Field(4, ge=1)
    sleep_s: float = Field(0.0, ge=0, description="Seconds of work for each chunk.")
    fail: Literal["no", "bad_input", "transient", "bug", "kill", "noise"] = "no"
    fail_at: int = 0
    fail_once: str = Field("", description="A file: fail only while it does not exist, and create it.")


class SumParams(BaseModel):
    """The sum of the squares of all inputs ``squares``."""

    power: int = 1


class NoParams(BaseModel):
    """Nothing to choose."""


class UnstableParams(BaseModel):
    """Random bytes that differ from run to run, as of a task that is not deterministic."""

    chunks: int = 5
    sleep_s: float = 0.05


class WhereParams(BaseModel):
    """In which environment to run."""

    environment: str = "torch"


class CheckParams(BaseModel):
    """A look at the outside world: the size of a file."""

    path: str


def squares(ctx: ShardContext) -> None:
    p: SquaresParams = ctx.params
    total = -(-p.n // p.chunk_size)
    for chunk in ctx.chunks(total):
        if chunk.index == p.fail_at:
            _fail(p)
        time.sleep(p.sleep_s)
        x = np.arange(chunk.index * p.chunk_size, min(p.n, (chunk.index + 1) * p.chunk_size))
        rng = np.random.default_rng([ctx.seed, chunk.index])
        chunk.table("squares", pa.table({"x": x, "square": x * x, "text": [f"{value}²" for value in x]}))
        chunk.tensors("noise", {"noise": rng.standard_normal((len(x), 8), dtype=np.float32)})
        chunk.count(numbers=len(x))
        chunk.commit()
        ctx.progress(chunk.index + 1, total, unit="chunks")
    ctx.table("summary", pa.table({"numbers": [p.n]}))
    ctx.note("pid", os.getpid())


def total(ctx: ShardContext) -> None:
    p: SumParams = ctx.params
    values = [int(value) for shard in ctx.inputs("squares") for value in shard.table("squares")["square"].to_numpy()]
    ctx.json("sum", {"sum": sum(value**p.power for value in values)})
    ctx.count(numbers=len(values))


def unstable(ctx: ShardContext) -> None:
    p: UnstableParams = ctx.params
    for chunk in ctx.chunks(p.chunks):
        time.sleep(p.sleep_s)
        chunk.table("bytes", pa.table({"index": [chunk.index], "bytes": [os.urandom(64)]}))
        chunk.commit()
    digests = [hashlib.sha256(value).hexdigest() for value in ctx.committed.table("bytes")["bytes"].to_pylist()]
    ctx.json("digests", digests)


def stuck(ctx: ShardContext) -> None:
    """A long call into a library, during which no signal handler of Python's runs."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


def where(ctx: ShardContext) -> None:
    ctx.json("where", {"executable": sys.executable, "prefix": sys.prefix})


def check(ctx: ShardContext) -> None:
    ctx.json("file", {"size": os.path.getsize(ctx.params.path)})


def _fail(p: SquaresParams) -> None:
    if p.fail_once:
        if os.path.exists(p.fail_once):
            return
        with open(p.fail_once, "w"):
            pass
    if p.fail == "bad_input":
        raise BadInput("params.fail", p.fail, "this task was told to refuse its input", "use fail='no'")
    if p.fail == "transient":
        raise TransientError("this task was told to meet a passing fault")
    if p.fail == "bug":
        raise ZeroDivisionError("this task was told to have a bug")
    if p.fail == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if p.fail == "noise":
        print("a library prints this")
        os.system("echo a subprocess prints this")


KINDS = (
    TaskKind("toy.squares", 1, SquaresParams, "tests.toy_tasks:squares"),
    TaskKind("toy.sum", 1, SumParams, "tests.toy_tasks:total"),
    TaskKind("toy.unstable", 1, UnstableParams, "tests.toy_tasks:unstable"),
    TaskKind("toy.stuck", 1, NoParams, "tests.toy_tasks:stuck"),
    TaskKind("toy.where", 1, WhereParams, "tests.toy_tasks:where", environment=lambda params: params.environment),
    TaskKind("toy.check", 1, CheckParams, "tests.toy_tasks:check", always_run=True),
)
