"""How many trials fit the memory: what a row of a batch takes, and how much there is.

An estimate of the torch engine's buffers beside the model's weights, on the high side. A batch that still does not fit
is halved by the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel

from tasks.engines.interface import Capture
from tasks.engines.tiles import dimensions
from tasks.models.memory import free_bytes

MOST_ROWS = 512
"""More rows are hardly faster."""
SHARE = {"cuda": 0.8, "cpu": 0.5}
"""Of the free memory: the rest is for SAEs, kernels' scratch, fragments, and on a CPU for other processes."""

_SAMPLING = 44
"""Bytes for each entry of the vocabulary: float32 logits and probabilities, sorted with int64 indices, their sums in
float64, and the scratch of a sort."""
_SCORES = 20
"""Bytes for each attention score: the model's product, float32, masked, capped, and cast back."""
_MASKS = 18
"""Bytes for each position of a pass: int64 distances and bool masks."""


@dataclass(frozen=True)
class BatchMemory:
    """Bytes of a batch of T tiles with R rows each."""

    per_tile: int
    """A prefix: its place in the tile, and itself while a tile holds it."""
    per_row: int

    def of(self, tiles: int, rows: int) -> int:
        return tiles * (self.per_tile + rows * self.per_row)

    @classmethod
    def estimate(
        cls,
        model: PreTrainedModel,
        capacity: int,
        prefix_capacity: int,
        capture: Capture | None = None,
        dictionary: int = 0,
    ) -> BatchMemory:
        """capacity: new tokens of a trial at most; prefix_capacity: tokens of a prefix at most.

        dictionary: width of the widest SAE that passes encode as a whole (mode `reconstruct`, TopK gates), else 0.
        """
        config, dtype = model.config.get_text_config(decoder=True), model.dtype
        per_token = kv_bytes_per_token(config, dtype)
        scores = config.num_attention_heads * (capacity + prefix_capacity)
        steps = torch.float64.itemsize + torch.int64.itemsize  # uniforms and tokens
        # On CUDA a first pass and its recording have buffers of their own.
        passes = 2 if next(model.parameters()).is_cuda else 1
        of_a_pass = (
            _SAMPLING * config.vocab_size
            + _SCORES * scores
            + _MASKS * (capacity + prefix_capacity)
            + _hidden_bytes(config, dtype)
            + 3 * torch.float32.itemsize * dictionary
        )
        captured = capture_bytes(capture or Capture(), capacity, config.hidden_size)
        return cls(
            per_tile=2 * per_token * prefix_capacity,
            per_row=(per_token + steps) * capacity + passes * of_a_pass + captured,
        )


def choose_batch_size(
    memory: BatchMemory,
    prefixes: Sequence[int],
    device: torch.device | str,
    most: int | None = None,
    free: int | None = None,
    shape: Callable[[Sequence[int], int], tuple[int, int]] = dimensions,
) -> int:
    """Rows of a batch that a share of the free memory holds, from 1 to `most`.

    prefixes: for each prefix the number of its trials, which decides how many rows share one.
    most: default MOST_ROWS. free: bytes; default what the device has. shape: tiles and rows of each, for prefixes with
    so many trials and a batch of so many rows.
    """
    kind = torch.device(device).type
    most = MOST_ROWS if most is None else most
    budget = SHARE.get(kind, SHARE["cpu"]) * (free_bytes(device) if free is None else free)
    size = most
    while size > 1 and memory.of(*shape(prefixes, size)) > budget:
        # By eighths: close to what fits, and a few sizes only.
        size = min(size - 1, size * 7 // 8)
    return max(1, size)


def kv_bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * config.num_hidden_layers * kv_heads * width * dtype.itemsize


def capture_bytes(capture: Capture, capacity: int, d_model: int) -> int:
    """Captures of one row: of the pass, kept until the trial ends, and copied twice when it does."""
    places = capacity if "decode" in capture.positions else len(capture.positions)
    features, residuals = len(capture.rows), len(capture.residual_layers) * d_model
    kept = places * (torch.float16.itemsize * features + torch.float32.itemsize * residuals)
    of_a_pass = torch.float32.itemsize * (features + residuals)
    return 3 * kept + 3 * of_a_pass


def _hidden_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """What one token takes within a block: the stream in float32 and its copies, queries, and the inner width."""
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * config.hidden_size
    experts = getattr(config, "num_experts_per_tok", None) or 1
    return 8 * torch.float32.itemsize * config.hidden_size + 4 * dtype.itemsize * inner * experts
