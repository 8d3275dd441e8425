"""Decoding on shared prefixes: attention over a prompt's keys and values that are stored once for many trials.

The rows of a batch stand in *tiles*: T tiles of R rows. All rows of a tile have the same *prefix* (the prompt without
its last token), whose keys and values the tile holds once; each row has a *suffix* of its own, at its own position.
Scores against the prefix are one matrix product for the R rows of a tile (rows folded into queries), scores against
the suffix are one per row, and one softmax runs over both, so that the result is exactly that of ordinary attention.

All shapes are fixed, and which prefix a tile holds is data: a step can be a CUDA graph, whatever runs in it.
transformers calls `tiled_attention` through its attention interface (name `NAME`); the cache of the current forward
pass is in a context variable, since the interface has no room for it.

Shapes: T tiles, R rows each, B = T R; Q query heads, K key-value heads, G = Q / K, D head width; P prefix capacity,
S suffix capacity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel

NAME = "tomograph_tiled"


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


class TiledCache(Cache):
    """Keys and values of all tiles and rows, in buffers that stay where they are."""

    def __init__(self, n_layers: int, tiles: int, rows: int, prefix_capacity: int, capacity: int, device: torch.device):
        super().__init__(layers=[])
        self.tiles, self.rows = tiles, rows
        self.prefix_capacity, self.capacity = prefix_capacity, capacity
        self.prefix_keys: list[Tensor | None] = [None] * n_layers
        """[T, K, P, D] per layer"""
        self.prefix_values: list[Tensor | None] = [None] * n_layers
        self._keys: list[Tensor | None] = [None] * n_layers
        """[B, K, S, D] per layer"""
        self._values: list[Tensor | None] = [None] * n_layers
        self.prefix_length = torch.zeros(tiles, dtype=torch.int64, device=device)
        self._row = torch.arange(tiles * rows, device=device)
        self._at = torch.zeros(tiles * rows, dtype=torch.int64, device=device)
        self._used, self._ragged, self._padded = capacity, True, True
        self._hidden: dict[tuple[int | None, torch.device], tuple[Tensor | None, Tensor | None]] = {}

    def place(self, tile: int, prefix: Prefix) -> None:
        """Give a tile another prefix."""
        for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            if self.prefix_keys[layer] is None:
                self.prefix_keys[layer] = _buffer(keys, self.tiles, self.prefix_capacity)
                self.prefix_values[layer] = _buffer(values, self.tiles, self.prefix_capacity)
            self.prefix_keys[layer][tile, :, : prefix.length] = keys
            self.prefix_values[layer][tile, :, : prefix.length] = values
        self.prefix_length[tile] = prefix.length

    def begin(self, at: Tensor, used: int, ragged: bool, padded: bool) -> None:
        """Before a pass. at [B]: the suffix slot that each row writes; later slots are hidden from it.

        used: suffix slots that any row may see, this pass's included (at most S); ragged: rows may write different
        slots; padded: a tile's prefix may be shorter than P. The last three are known on the host, and may be given
        too large.
        """
        self._at.copy_(at)
        self._used, self._ragged, self._padded = used, ragged, padded
        self._hidden.clear()

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Store one token per row ([B, K, 1, D]); returns the used part of the suffix buffers, [B, K, used, D]."""
        if self._keys[layer_idx] is None:
            self._keys[layer_idx] = _buffer(key[0], key.shape[0], self.capacity)
            self._values[layer_idx] = _buffer(value[0], value.shape[0], self.capacity)
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._ragged:
            row, at = self._row.to(key.device), self._at.to(key.device)
            keys[row, :, at] = key[:, :, 0]
            values[row, :, at] = value[:, :, 0]
        else:
            keys[:, :, self._used - 1] = key[:, :, 0]
            values[:, :, self._used - 1] = value[:, :, 0]
        return keys[:, :, : self._used], values[:, :, : self._used]

    def hidden(self, window: int | None, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Keys that a row may not see: prefix [T, R or 1, P] and suffix [B, used] bool, or None where it sees all.

        They are the same in all layers of one window, so they are made once in a pass.
        """
        key = window, device
        if key not in self._hidden:
            prefix, suffix = self._hide(window)
            self._hidden[key] = (
                None if prefix is None else prefix.to(device),
                None if suffix is None else suffix.to(device),
            )
        return self._hidden[key]

    def _hide(self, window: int | None) -> tuple[Tensor | None, Tensor | None]:
        slot = torch.arange(self._used, device=self._at.device)
        back = self._at[:, None] - slot
        place = torch.arange(self.prefix_capacity, device=self._at.device)
        outside = place >= self.prefix_length[:, None, None]
        if window is not None and self.prefix_capacity + self._used > window:
            position = self.prefix_length[:, None] + self._at.view(self.tiles, self.rows)
            outside = outside | (position[..., None] - place >= window)
            return outside, (back < 0) | (back >= window)
        return outside if self._padded else None, back < 0 if self._ragged else None

    def select(self, rows: Tensor, tiles: Tensor) -> TiledCache:
        """A cache of other dimensions: row i of it is row rows[i] of this one, tile t the prefix of tiles[t]."""
        tiled = TiledCache(
            len(self._keys),
            tiles.shape[0],
            rows.shape[0] // tiles.shape[0],
            self.prefix_capacity,
            self.capacity,
            self._at.device,
        )
        pick = lambda buffers, index: [None if t is None else t[index.to(t.device)] for t in buffers]  # noqa: E731
        tiled.prefix_keys, tiled.prefix_values = pick(self.prefix_keys, tiles), pick(self.prefix_values, tiles)
        tiled._keys, tiled._values = pick(self._keys, rows), pick(self._values, rows)
        tiled.prefix_length = self.prefix_length[tiles]
        return tiled

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Unused by a model that is given its position ids; 0 keeps default masks trivial."""
        return 0


def _buffer(like: Tensor, n: int, capacity: int) -> Tensor:
    """like [K, ., D] -> zeros [n, K, capacity, D]."""
    return like.new_zeros(n, like.shape[0], capacity, like.shape[2])


_cache: ContextVar[TiledCache] = ContextVar("tomograph_tiled_cache")


def tiled_attention(
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
    """query [B, Q, 1, D], key and value [B, K, S, D] (suffix) -> ([B, 1, Q, D], None).

    Supports grouped queries, sliding windows, soft-capped scores (Gemma 2) and attention sinks (GPT-OSS).
    """
    cache = _cache.get()
    batch, heads, _, width = query.shape
    kv_heads = key.shape[1]
    tiles = _Tiles(cache.tiles, cache.rows, kv_heads, heads // kv_heads)
    q = query.view(batch, kv_heads, -1, width) * (width**-0.5 if scaling is None else scaling)
    prefix_hidden, suffix_hidden = cache.hidden(sliding_window, query.device)

    own = _capped((q @ key.transpose(-1, -2)).float(), softcap)
    if suffix_hidden is not None:
        own = own.masked_fill(suffix_hidden[:, None, None], float("-inf"))
    highest = own.amax(-1)
    if s_aux is not None:
        sinks = s_aux.float().view(kv_heads, -1)
        highest = torch.maximum(highest, sinks)
    shared = None
    if cache.prefix_capacity:
        keys, values = cache.prefix_keys[module.layer_idx], cache.prefix_values[module.layer_idx]
        shared = _capped((tiles.fold(q) @ keys.transpose(-1, -2)).float(), softcap)
        if prefix_hidden is not None:
            by_row = shared.view(cache.tiles, kv_heads, cache.rows, -1, cache.prefix_capacity)
            shared = by_row.masked_fill(prefix_hidden[:, None, :, None], float("-inf")).view_as(shared)
        highest = torch.maximum(highest, tiles.unfold(shared.amax(-1, keepdim=True)).squeeze(-1))

    own = own.sub_(highest[..., None]).exp_()
    total = own.sum(-1)
    out = (own.to(value.dtype) @ value).float()
    if s_aux is not None:
        total += torch.exp(sinks - highest)
    if shared is not None:
        shared = shared.sub_(tiles.fold(highest[..., None])).exp_()
        total += tiles.unfold(shared.sum(-1, keepdim=True)).squeeze(-1)
        out += tiles.unfold(shared.to(values.dtype) @ values)
    out = (out / total[..., None]).to(query.dtype)
    return out.reshape(batch, 1, heads, -1), None


@dataclass(frozen=True)
class _Tiles:
    """Rows folded into the queries of their tile, and back."""

    tiles: int
    rows: int
    kv_heads: int
    per_kv: int

    def fold(self, x: Tensor) -> Tensor:
        """[B, K, G, n] -> [T, K, R G, n]"""
        by_tile = x.view(self.tiles, self.rows, self.kv_heads, self.per_kv, -1)
        return by_tile.transpose(1, 2).reshape(self.tiles, self.kv_heads, self.rows * self.per_kv, -1)

    def unfold(self, x: Tensor) -> Tensor:
        """[T, K, R G, n] -> [B, K, G, n]"""
        by_row = x.view(self.tiles, self.kv_heads, self.rows, self.per_kv, -1)
        return by_row.transpose(1, 2).reshape(self.tiles * self.rows, self.kv_heads, self.per_kv, -1)


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


AttentionInterface.register(NAME, tiled_attention)


@contextmanager
def decoding(model: PreTrainedModel, cache: TiledCache) -> Iterator[None]:
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
