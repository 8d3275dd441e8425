"""Float32 logits from 16-bit weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.engines.head import Float32Head
from tasks.engines.interface import Cell
from tasks.engines.torch_engine import TorchEngine
from tests.engines.conftest import Bench


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_logits_are_the_exact_products_and_the_head_is_restored(dtype, bias):
    torch.manual_seed(0)
    head = nn.Linear(64, 500, bias=bias, dtype=dtype)
    hidden = torch.randn(7, 64, dtype=dtype) * 20
    with torch.inference_mode():
        exact = nn.functional.linear(hidden.double(), head.weight.double(), head.bias.double() if bias else None)
        with Float32Head(head).installed():
            logits = head(hidden)
        rounded = head(hidden)
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().max() < 1e-4
    assert rounded.dtype == dtype
    assert (rounded.double() - exact).abs().max() > 1e-2


def test_a_float32_head_is_left_alone():
    head = nn.Linear(4, 5)
    with Float32Head(head).installed():
        assert "forward" not in head.__dict__


def test_the_precision_of_other_products_is_unchanged():
    head = nn.Linear(8, 8, dtype=torch.bfloat16)
    before = torch.backends.mkldnn.matmul.fp32_precision
    with Float32Head(head).installed():
        head(torch.ones(1, 8, dtype=torch.bfloat16))
        assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_the_engine_leaves_the_models_head_as_it_was():
    bench = Bench(dtype=torch.bfloat16)
    [result] = TorchEngine(bench.loaded).first_token([Cell(0, (5, 6, 7))], [list(range(128))])
    assert result.probabilities[0] == pytest.approx(1.0, abs=1e-6)
    assert "forward" not in bench.layout.lm_head.__dict__
