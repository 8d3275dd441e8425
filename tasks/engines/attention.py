"""Decoding on shared prefixes: attention over a prompt's keys and values that are stored once for all its trials.

A batch row is one trial. Its past is a *prefix*, shared with every row of the same prompt, and a *suffix* of its own.
Scores against the prefix are one matrix product for all rows that share it (rows folded into queries), scores
against the suffix are one per row, and one softmax runs over both, so that the result is exactly that of ordinary
attention. Rows may stand at different positions, so a finished row's slot can take the next trial at once.

transformers calls `shared_prefix_attention` through its attention interface (name `NAME`); the keys and values
of the current forward pass are in a context variable, since the interface has no room for them.

Shapes: B rows, Q query heads, K key-value heads, G = Q / K, D head width, P prefix length, S suffix capacity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel

NAME = "tomograph_shared_prefix"


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of a prompt without its last token."""

    keys: list[Tensor]
    """One [K, P, D] per layer."""
    values: list[Tensor]
    """One [K, P, D] per layer."""
    length: int

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.keys, *self.values))


@dataclass(frozen=True, eq=False)
class PrefixGroup:
    """The rows of the batch that share one prefix."""

    prefix: Prefix
    rows: Tensor | None
    """[n] int64; None when all rows of the batch share it."""


class SuffixCache(Cache):
    """The suffix keys and values of all rows, in buffers of fixed size [B, K, S, D] per layer."""

    def __init__(self, n_layers: int, batch: int, capacity: int):
        super().__init__(layers=[])
        self._keys: list[Tensor | None] = [None] * n_layers
        self._values: list[Tensor | None] = [None] * n_layers
        self._batch, self._capacity = batch, capacity
        self.groups: list[PrefixGroup] = []
        self.lengths: Tensor | None = None
        """[B] int64: suffix tokens stored before this pass, which is where this pass writes."""
        self.longest = 0
        """The largest of lengths."""
        self.uniform = True
        """All lengths are equal: no suffix slot needs masking."""

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Store one token per row ([B, K, 1, D]); returns the used part of the buffers, [B, K, T, D]."""
        if self._keys[layer_idx] is None:
            shape = (self._batch, key.shape[1], self._capacity, key.shape[3])
            self._keys[layer_idx] = key.new_zeros(shape)
            self._values[layer_idx] = value.new_zeros((*shape[:3], value.shape[3]))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self.uniform:
            keys[:, :, self.longest] = key[:, :, 0]
            values[:, :, self.longest] = value[:, :, 0]
        else:
            rows = torch.arange(self._batch, device=key.device)
            keys[rows, :, self.lengths] = key[:, :, 0]
            values[rows, :, self.lengths] = value[:, :, 0]
        used = self.longest + 1
        return keys[:, :, :used], values[:, :, :used]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self._batch = rows.shape[0]
        self._keys = [None if t is None else t[rows] for t in self._keys]
        self._values = [None if t is None else t[rows] for t in self._values]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Unused by a model that is given its position ids; 0 keeps default masks trivial."""
        return 0


_cache: ContextVar[SuffixCache] = ContextVar("tomograph_suffix_cache")


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """query [B, Q, 1, D], key and value [B, K, T, D] (suffix) -> ([B, 1, Q, D], None).

    Supports grouped queries, sliding windows, soft-capped scores (Gemma 2) and attention sinks (GPT-OSS).
    """
    cache = _cache.get()
    batch, q_heads, _, width = query.shape
    kv_heads = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    q = query.view(batch, kv_heads, q_heads // kv_heads, width) * scale
    suffix_scores = q @ key.transpose(-1, -2)
    sinks = None if s_aux is None else s_aux.view(kv_heads, -1)
    out = q.new_empty(*q.shape[:3], value.shape[-1])
    for group in cache.groups:
        rows = slice(None) if group.rows is None else group.rows
        scores = torch.cat([_prefix_scores(q[rows], group.prefix.keys[module.layer_idx]), suffix_scores[rows]], -1)
        hidden = _hidden(cache, group, scores.shape[-1], sliding_window)
        weights = _softmax(scores.float(), hidden, softcap, sinks).to(q.dtype)
        out[rows] = _mix(weights, group.prefix.values[module.layer_idx], value[rows])
    return out.reshape(batch, 1, q_heads, -1), None


def _prefix_scores(q: Tensor, keys: Tensor) -> Tensor:
    """q [n, K, G, D], keys [K, P, D] -> [n, K, G, P]: the rows are folded into one product per head."""
    n, kv_heads, per_kv, width = q.shape
    folded = q.transpose(0, 1).reshape(kv_heads, n * per_kv, width)
    return (folded @ keys.transpose(-1, -2)).view(kv_heads, n, per_kv, -1).transpose(0, 1)


def _hidden(cache: SuffixCache, group: PrefixGroup, n_keys: int, window: int | None) -> Tensor | None:
    """[n, P + T] bool: keys that a row may not see (slots it has not filled, or outside its window)."""
    if cache.uniform and (window is None or n_keys <= window):
        return None
    lengths = cache.lengths if group.rows is None else cache.lengths[group.rows]
    back = lengths[:, None] + group.prefix.length - torch.arange(n_keys, device=lengths.device)
    return back < 0 if window is None else (back < 0) | (back >= window)


def _softmax(scores: Tensor, hidden: Tensor | None, softcap: float | None, sinks: Tensor | None) -> Tensor:
    """scores [n, K, G, P + T] float32 -> attention weights of the same shape.

    A sink [K, G] is one more score per head that takes mass and gives nothing.
    """
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    with_sink = torch.cat([scores, sinks.float().expand(scores.shape[0], -1, -1)[..., None]], dim=-1)
    return torch.softmax(with_sink, dim=-1)[..., :-1]


def _mix(weights: Tensor, prefix_values: Tensor, suffix_values: Tensor) -> Tensor:
    """weights [n, K, G, P + T], prefix values [K, P, D], suffix values [n, K, T, D] -> [n, K, G, D]."""
    n, kv_heads, per_kv, _ = weights.shape
    length = prefix_values.shape[1]
    folded = weights[..., :length].transpose(0, 1).reshape(kv_heads, n * per_kv, length)
    from_prefix = (folded @ prefix_values).view(kv_heads, n, per_kv, -1).transpose(0, 1)
    return from_prefix + weights[..., length:] @ suffix_values


AttentionInterface.register(NAME, shared_prefix_attention)


@contextmanager
def decoding(model: PreTrainedModel, cache: SuffixCache) -> Iterator[None]:
    """Within the context the model attends through `cache`. Its own attention is restored afterwards.

    The name is not in transformers' table of masks, so models build no mask of their own.
    """
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    before = [config._attn_implementation for config in configs]
    token = _cache.set(cache)
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        _cache.reset(token)
