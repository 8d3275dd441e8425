"""The Triton kernels compile for GPUs, down to machine code; that takes no GPU. The rooms' tests run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# Types of the arguments as the callers give them; what is not named is a compile-time constant.
EDIT = (
    "tasks.engines.edit_kernel",
    "_edit_rows",
    "hidden:*bf16 residual:*bf16 layer_of:*i32 row_of:*i32 value_of:*fp32 u:*fp32 b:*fp32 theta:*fp32 w:*fp32 "
    "applied:*i32 f_before:*fp32 relative_delta:*fp32 layer:i32 d:i32 hidden_stride:i32 residual_stride:i32",
    {"HAS_RESIDUAL": True, "BLOCK": 4096},
)
TOKENS = (
    "tasks.outliers.reductions_cuda",
    "_tokens",
    "x:*{dtype} start:*i64 length:*i64 columns:i32 d:i32 absolute:i32 ratio:fp32 massive_limit:i32 massive_ratio:fp32 "
    "relative:*i32 massive:*i32 rms:*fp64 median:*fp32 token_top:*fp32 token_hits:*i32 nan:*i32 inf:*i32 width:i32",
    {"SHIFT": 16, "D": 4096},
)
DIMENSIONS = (
    "tasks.outliers.reductions_cuda",
    "_dimensions",
    "x:*{dtype} start:*i64 length:*i64 columns:i32 d:i32 absolute:i32 relative:*i32 massive:*i32 point:i32 rms:*fp64 "
    "median:*fp32 count:*i32 count_stride:i32 negative:*i32 peak:*fp32 peak_at:*i32 massive_peak:*fp32 "
    "peak_stride:i32 over_rms:*fp32 over_median:*fp32 hits:*u8 "
    "first_values:*fp32 first_points:*i32 first_positions:*i32 filled:*i32 width:i32",
    {"KEPT": 5, "TILE": 32, "BLOCK": 64},
)

PROGRAM = """
import importlib, json, sys, traceback, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def compiled(module, name, types, constants, capability):
    kernel = getattr(importlib.import_module(module), name)
    types = dict(argument.split(":") for argument in types.split())
    named = set(types) | set(constants)
    assert set(kernel.arg_names) == named, set(kernel.arg_names) ^ named
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    return sorted(triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm)

for case, arguments in json.load(sys.stdin).items():
    try:
        print(json.dumps([case, compiled(*arguments)]))
    except Exception:
        print(json.dumps([case, traceback.format_exc()]))
"""


def cases() -> dict[str, tuple]:
    """Arguments of the program's function, by the name of the kernel, its type and the GPU's capability."""
    given = {}
    for module, name, types, constants in (EDIT, TOKENS, DIMENSIONS):
        for dtype in ("bf16", "fp16", "fp32") if "{dtype}" in types else ("bf16",):
            fitting = constants | ({"SHIFT": 0} if "SHIFT" in constants and dtype != "bf16" else {})
            for capability in (80, 90):
                given[f"{name}-{dtype}-{capability}"] = (module, name, types.format(dtype=dtype), fitting, capability)
    return given


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[str] | str]:
    """The kinds of code that each kernel was compiled to, or why it was not. One interpreter, without Triton's own."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(cases()),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("case", cases())
def test_it_compiles(case: str, compiled: dict[str, list[str] | str]) -> None:
    assert "cubin" in compiled[case], compiled[case]
