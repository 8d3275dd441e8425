"""The estimate of a batch's memory against what batches really allocate."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from tasks.engines.interface import Capture, Edit, Trial
from tasks.engines.memory import BatchMemory, choose_batch_size, kv_bytes_per_token
from tasks.engines.torch_engine import TorchEngine
from tests.engines.conftest import Bench
from tests.models.tiny import ARCHITECTURES, tiny_model

EVERYTHING = Capture(rows=range(12), residual_layers=range(4), positions=("decode",))


class PeakOfTensors(TorchDispatchMode):
    """The most bytes that tensors made within the context held at one time."""

    def __init__(self):
        super().__init__()
        self.peak = self._now = 0
        self._live: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in given:
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._live:
            return

        def gone(_):
            self._now -= size
            del self._live[key]

        self._live[key] = weakref.ref(storage, gone)
        self._now += size
        self.peak = max(self.peak, self._now)


def test_the_peak_is_counted():
    with PeakOfTensors() as counted:
        a = torch.zeros(1000)
        b = (a + 1).double().sum()
        c = a.view(10, 100)[3]
        del a, b, c
        torch.zeros(2000)
    assert counted.peak == pytest.approx(4 * 1000 + 4 * 1000 + 8 * 1000, abs=64)
    assert counted._now == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bytes_of_keys_and_values(architecture):
    model = tiny_model(architecture)
    if not model._supports_attention_backend:
        pytest.skip("the engine refuses this architecture")
    cache = DynamicCache()
    model.base_model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache, use_cache=True)
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    config = model.config.get_text_config(decoder=True)
    assert kv_bytes_per_token(config, torch.float32) == real / 3
    assert kv_bytes_per_token(config, torch.bfloat16) == real / 6


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["shared prompt", "own prompts"])
@pytest.mark.parametrize(
    ("architecture", "prompt", "capacity", "capture", "mode", "dtype"),
    [
        ("llama", 60, 150, None, "keep_error", torch.float32),
        ("qwen3", 200, 8, None, "keep_error", torch.float32),
        ("gemma2", 40, 40, EVERYTHING, "keep_error", torch.bfloat16),
        ("llama", 2, 30, EVERYTHING, "reconstruct", torch.float32),
        ("gpt2", 120, 20, Capture(rows=range(12)), "keep_error", torch.bfloat16),
    ],
)
def test_no_batch_takes_more_than_its_estimate(architecture, prompt, capacity, capture, mode, dtype, shared):
    bench, n = Bench(architecture, dtype=dtype), 24
    prompts = bench.prompts(n, low=prompt, high=prompt + 1)
    trials = [
        Trial(i, prompts[0 if shared else i], i, Edit(i % 12, 1.0, "decode", mode), capacity, top_p=0.9)
        for i in range(n)
    ]
    engine = TorchEngine(bench.loaded, bench.bank, bench.saes.__getitem__, n, end_tokens=(), prefix_bytes=0)
    with PeakOfTensors() as real:
        assert len(list(engine.generate(trials, capture))) == n
    memory = BatchMemory.estimate(bench.model, capacity, prompt - 1, capture, 96 if mode == "reconstruct" else 0)
    estimate = memory.of(1, n) if shared else memory.of(n, 1)
    assert estimate / 4 < real.peak < estimate


def test_as_many_rows_as_fit():
    memory = BatchMemory(per_tile=1000, per_row=100)
    alone = [1] * 600
    assert choose_batch_size(memory, [600], "cuda", free=10**9) == 512
    assert choose_batch_size(memory, [600], "cpu", free=10**9) == 512
    assert choose_batch_size(memory, [600], "cuda", most=2000, free=10**9) == 2000
    assert choose_batch_size(memory, [600], "cuda", free=0) == 1
    shared, own = (choose_batch_size(memory, prefixes, "cpu", free=60_000) for prefixes in ([600], alone))
    assert 20 <= own <= 27  # 30,000 bytes, 1,100 for each row with a prefix of its own
    assert shared == 229  # 7 tiles of 32 rows, 4,200 bytes each


def test_the_machine_is_asked(bench):
    memory = BatchMemory.estimate(bench.model, capacity=20, prefix_capacity=30)
    assert choose_batch_size(memory, [1000], "cpu") == 512
    assert choose_batch_size(BatchMemory(0, per_row=2**50), [1000], "cpu") == 1
