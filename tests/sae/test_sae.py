"""The canonical dictionary against its formulas, written naively."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tasks.sae.sae import CONVENTION, SAE, Threshold, TopK
from tests.sae.checkpoints import D_MODEL, D_SAE, residuals, weights


def make(gate: Threshold | TopK | None = None) -> SAE:
    w = weights(seed=1)
    return SAE(4, w["W_enc"], w["b_enc"], w["W_dec"], w["b_dec"], gate or Threshold(w["theta"]), "test")


def test_encode_and_decode_are_the_formulas() -> None:
    sae, x = make(), residuals(seed=1)
    f, x_hat = sae.encode(x), sae.reconstruct(x)
    for token in range(0, len(x), 5):
        for j in range(D_SAE):
            pre = float(x[token].double() @ sae.W_enc[:, j].double() + sae.b_enc[j].double())
            expected = pre if pre > float(sae.gate.theta[j]) else 0.0
            assert float(f[token, j]) == pytest.approx(expected, abs=1e-4)
        expected_x = sum(float(f[token, j]) * sae.W_dec[j].double() for j in range(D_SAE)) + sae.b_dec.double()
        torch.testing.assert_close(x_hat[token].double(), expected_x, atol=1e-4, rtol=0)
    assert 0 < (f > 0).float().mean() < 0.9


def test_threshold_is_strict() -> None:
    gate = Threshold(torch.tensor([0.0, 1.0, 1.0]))
    assert gate(torch.tensor([0.0, 1.0, 1.0000001])).tolist() == [0.0, 0.0, pytest.approx(1.0000001)]


def test_topk_keeps_the_k_largest_positive_ones_of_each_token() -> None:
    f = TopK(2)(torch.tensor([[3.0, -5.0, 1.0, 2.0], [-1.0, -2.0, 0.5, -3.0]]))
    assert f.tolist() == [[3.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.5, 0.0]]


@pytest.mark.parametrize("gate", [None, TopK(5)])
def test_a_few_features_are_columns_of_the_full_encode(gate: TopK | None) -> None:
    sae, x = make(gate), residuals(seed=2).reshape(4, 6, D_MODEL)
    index = torch.tensor([7, 0, 31])
    torch.testing.assert_close(sae.encode_features(x, index), sae.encode(x)[..., index])


def test_arithmetic_is_float32_whatever_the_storage() -> None:
    x = residuals(seed=3)
    small = make().to(dtype=torch.bfloat16)
    assert small.W_enc.dtype == small.W_dec.dtype == torch.bfloat16
    assert small.b_enc.dtype == small.gate.theta.dtype == torch.float32
    rounded = replace(make(), W_enc=make().W_enc.bfloat16().float(), W_dec=make().W_dec.bfloat16().float())
    assert torch.equal(small.encode(x), rounded.encode(x))
    assert torch.equal(small.reconstruct(x), rounded.reconstruct(x))
    assert torch.equal(small.encode(x.bfloat16()), rounded.encode(x.bfloat16().float()))


def test_size_and_convention() -> None:
    sae = make()
    n_weights, n_vectors = D_MODEL * D_SAE, 2 * D_SAE + D_MODEL
    assert sae.nbytes == 4 * (2 * n_weights + n_vectors)
    assert sae.to(dtype=torch.bfloat16).nbytes == 2 * 2 * n_weights + 4 * n_vectors
    assert make(TopK(3)).nbytes == 4 * (2 * n_weights + D_SAE + D_MODEL)
    assert (sae.d_model, sae.d_sae) == (D_MODEL, D_SAE)
    assert sae.convention == CONVENTION == "raw_residual"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("b_enc", torch.zeros(3), "b_enc has shape"),
        ("W_dec", torch.zeros(D_MODEL, D_SAE), "W_dec has shape"),
        ("gate", Threshold(torch.zeros(1)), "theta has shape"),
        ("gate", TopK(D_SAE + 1), "k is 41"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(make(), **{field: value})
