"""The cache of SAEs: least recently used out first, within its bytes."""

from __future__ import annotations

import pytest
import torch

from tasks.errors import BadInput
from tasks.sae.cache import SaeCache
from tasks.sae.sae import SAE, Threshold
from tests.sae.checkpoints import weights

ONE = 4 * (2 * 12 * 40 + 2 * 40 + 12)
"""Bytes of one SAE below."""


def loader(layer: int) -> SAE:
    w = weights(seed=layer)
    return SAE(layer, w["W_enc"], w["b_enc"], w["W_dec"], w["b_dec"], Threshold(w["theta"]), f"layer {layer}")


def test_the_least_recently_used_goes_first() -> None:
    cache = SaeCache(loader, byte_budget=2 * ONE + 1)
    for layer in (3, 5, 3, 7):
        assert cache.get(layer).layer == layer
        assert cache.nbytes <= 2 * ONE
    assert cache.layers == [3, 7]
    assert cache.get(5).layer == 5
    assert cache.layers == [7, 5]
    assert (cache.stats.hits, cache.stats.loads, cache.stats.evictions) == (1, 4, 2)


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    asked: list[int] = []
    cache = SaeCache(lambda layer: asked.append(layer) or loader(layer), byte_budget=10 * ONE)
    assert asked == []
    assert cache.get(4) is cache.get(4)
    assert asked == [4]


def test_one_that_never_fits() -> None:
    cache = SaeCache(loader, byte_budget=ONE - 1)
    with pytest.raises(BadInput, match=r"layer 4.*GiB"):
        cache.get(4)
    assert cache.layers == []


def test_the_budget_counts_what_is_on_the_device() -> None:
    half = SaeCache(lambda layer: loader(layer).to(dtype=torch.bfloat16), byte_budget=ONE)
    half.get(1)
    assert half.nbytes < 0.6 * ONE
