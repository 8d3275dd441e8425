"""The bound that a device sets to decoding: what moves, what is multiplied, and how fast this device does either.

A decode pass reads every weight once, each trial's own keys and values, and the shared prompt's once; it multiplies
every weight with every row. The bound is the slower of the two, as if they overlapped perfectly; sampling, norms and
launches are free. Copy bandwidth and matrix throughput are measured on the device, best of several.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig


@dataclass(frozen=True)
class Device:
    bytes_per_second: float
    """Read plus written by a large copy."""
    flops_per_second: float
    """Of a large bfloat16 matrix product."""

    @classmethod
    def measured(cls, device: torch.device) -> Device:
        side, copied = (8192, 2**31) if device.type == "cuda" else (1024, 2**26)
        a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        source = torch.empty(copied, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return cls(
            2 * copied / _fastest(lambda: target.copy_(source), device),
            2 * side**3 / _fastest(lambda: a @ b, device),
        )


def _fastest(run: Callable[[], object], device: torch.device, times: int = 20) -> float:
    """Seconds of the fastest of several runs, after a first one."""
    run()
    found = []
    for _ in range(times):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decode_seconds(config: PretrainedConfig, device: Device, batch: int, prompt: int, own: float) -> float:
    """The least seconds of one decode pass of a Llama in bfloat16.

    prompt: tokens of the shared prompt. own: tokens of each trial itself, on average.
    """
    d, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    q = config.num_attention_heads * config.head_dim
    of_layer = d * (2 * q + 2 * kv) + 3 * d * config.intermediate_size
    weights = config.num_hidden_layers * of_layer + d * config.vocab_size
    read = 2 * (weights + config.num_hidden_layers * 2 * kv * (batch * own + prompt))
    attention = config.num_hidden_layers * 4 * q * (prompt + own)
    return max(read / device.bytes_per_second, batch * (2 * weights + attention) / device.flops_per_second)
