"""The Triton kernels compile for GPUs, down to machine code; that takes no GPU. The rooms' tests run them."""

from __future__ import annotations

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
import importlib, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
module, name, types, constants, capability = sys.argv[1:]
kernel = getattr(importlib.import_module(module), name)
types = dict(one.split(":") for one in types.split())
constants = eval(constants)
assert set(kernel.arg_names) == set(types) | set(constants), set(kernel.arg_names) ^ (set(types) | set(constants))
source = ASTSource(
    fn=kernel,
    signature={name: types.get(name, "constexpr") for name in kernel.arg_names},
    constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
)
print(sorted(triton.compile(source, target=GPUTarget("cuda", int(capability), 32)).asm))
"""


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [(EDIT, ""), *((kernel, dtype) for kernel in (TOKENS, DIMENSIONS) for dtype in ("bf16", "fp16", "fp32"))],
    ids=lambda value: value[1] if isinstance(value, tuple) else value,
)
def test_it_compiles(kernel, dtype, capability) -> None:
    module, name, types, constants = kernel
    if "SHIFT" in constants and dtype != "bf16":
        constants = constants | {"SHIFT": 0}
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, module, name, types.format(dtype=dtype), repr(constants), str(capability)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "cubin" in done.stdout
