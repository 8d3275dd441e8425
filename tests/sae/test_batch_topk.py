"""The trainer: its written-out gradients, its selection, what it finds, and that it finds the same again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from tasks.errors import BadInput
from tasks.sae import batch_topk
from tasks.sae.batch_topk import Active, largest, train
from tasks.sae.quality import explained_variance, l0
from tasks.sae.sae import SAE

D, F, K = 48, 64, 3


def planted(n: int, seed: int = 0, noise: float = 0.02) -> tuple[Tensor, Tensor]:
    """Vectors [n, D], each a sum of K of F unit directions [F, D] with values of 1 to 3, plus a mean and noise."""
    rng = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(F, D, generator=torch.Generator().manual_seed(99)), dim=1)
    chosen = torch.rand(n, F, generator=rng).topk(K, dim=1).indices
    values = torch.zeros(n, F).scatter_(1, chosen, 1 + 2 * torch.rand(n, K, generator=rng))
    x = values @ directions + 5 * torch.randn(1, D, generator=torch.Generator().manual_seed(98))
    return 10 * (x + noise * torch.randn(n, D, generator=rng)), directions


def train_planted(x: Tensor, seed: int = 0, **change) -> batch_topk.Trained:
    arguments = {"d_sae": 2 * F, "k": K, "epochs": 20, "precision": torch.float32} | change
    return train(x, 3, "planted", seed=seed, **arguments)


@pytest.fixture(scope="module")
def trained() -> batch_topk.Trained:
    return train_planted(planted(8192)[0])


def found_share(sae: SAE) -> float:
    """Share of the planted directions that some decoder row has, up to an angle of 18 degrees."""
    _, directions = planted(1)
    cosines = normalize(sae.W_dec, dim=1) @ directions.T
    return float((cosines.max(dim=0).values > 0.95).float().mean())


def test_planted_directions_are_found(trained: batch_topk.Trained) -> None:
    assert found_share(trained.sae) > 0.98


def test_new_vectors_are_reconstructed_with_about_k_features(trained: batch_topk.Trained) -> None:
    x, _ = planted(2000, seed=1)
    f = trained.sae.encode(x)
    assert explained_variance(x, trained.sae.decode(f)) > 0.95
    assert l0(f) == pytest.approx(K, rel=0.1)
    assert explained_variance(x, trained.sae.decode(f)) == pytest.approx(1 - trained.error, abs=0.02)


def test_the_result_is_a_jumprelu_in_raw_units(trained: batch_topk.Trained) -> None:
    sae = trained.sae
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(2 * F))
    assert len(sae.gate.theta.unique()) == 1
    assert 5 < float(sae.gate.theta[0]) < 20, "planted values are 10 to 30"
    assert (sae.layer, sae.convention) == (3, "raw_residual")


def test_the_scale_of_the_input_scales_the_activations_only(trained: batch_topk.Trained) -> None:
    x, _ = planted(8192)
    scaled = train_planted(64 * x).sae
    torch.testing.assert_close(scaled.W_dec, trained.sae.W_dec, atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.encode(64 * x[:50]), 64 * trained.sae.encode(x[:50]), atol=2.0, rtol=1e-2)


def test_same_seed_same_bytes() -> None:
    x, _ = planted(2048)
    first, again, other = (train_planted(x, seed=n, epochs=2, precision=torch.bfloat16).sae for n in (0, 0, 1))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert torch.equal(first.gate.theta, again.gate.theta)
    assert not torch.equal(first.W_dec, other.W_dec)


def test_the_auxiliary_loss_finds_what_is_missed_without_it(
    trained: batch_topk.Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_topk, "AUX_WEIGHT", 0.0)
    without = train_planted(planted(8192)[0])
    assert found_share(without.sae) < found_share(trained.sae)
    assert without.error > trained.error


@pytest.mark.parametrize(
    ("change", "field"), [({"d_sae": 101}, "settings.tokens"), ({"d_sae": 3, "k": 4}, "settings.k")]
)
def test_impossible_sizes_are_refused(change: dict, field: str) -> None:
    with pytest.raises(BadInput, match=field):
        train_planted(planted(100)[0], **change)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 8),
    count=st.integers(1, 60),
    near=st.floats(-1, 4),
    quantum=st.sampled_from([0.0, 0.5]),
)
def test_largest_is_the_naive_choice(seed: int, rows: int, count: int, near: float, quantum: float) -> None:
    """Whatever the guess; among equal values any may be chosen."""
    pre = torch.randn(rows, 12, generator=torch.Generator().manual_seed(seed))
    if quantum:
        pre = (pre / quantum).round() * quantum
    found, values = largest(pre, count, near)
    flat = pre.flatten()
    expected = [v for v in flat.sort(descending=True).values.tolist() if v > 0][:count]
    assert sorted(values.tolist(), reverse=True) == pytest.approx(expected)
    assert found.tolist() == sorted(set(found.tolist()))
    assert torch.equal(flat[found], values)


def batch(seed: int, tokens: int = 32) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    return {
        "z": draw(tokens, D),
        "W_enc": draw(F, D) / 6,
        "b_enc": draw(F) / 4,
        "W_dec": normalize(draw(F, D), dim=1),
        "b_dec": draw(D) / 4,
    }


def test_gradients_are_those_of_autograd() -> None:
    b = batch(0)
    leaves = [b[name].clone().requires_grad_() for name in ("W_enc", "b_enc", "W_dec", "b_dec")]
    W_enc, b_enc, W_dec, b_dec = leaves
    pre = b["z"] @ W_enc.T + b_enc
    flat, value = largest(pre.detach(), 32 * K, 0.0)
    mask = torch.zeros(pre.numel()).index_fill_(0, flat, 1.0).reshape(pre.shape)
    error = (pre * mask) @ W_dec + b_dec - b["z"]
    (error.square().sum() / len(error)).backward()

    active = Active.of(flat, value, pre.shape)
    ours = active.over_features(value, W_dec.detach()) + b_dec.detach() - b["z"]
    torch.testing.assert_close(ours, error.detach())
    gradients = batch_topk._gradients(b["z"], W_dec.detach(), active, ours, torch.float32)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        torch.testing.assert_close(gradient, leaf.grad, atol=1e-5, rtol=1e-4)


def test_auxiliary_gradients_are_those_of_autograd() -> None:
    b = batch(1)
    dead = torch.tensor([3, 17, 40, 41])
    leaves = [b[name].clone().requires_grad_() for name in ("W_enc", "b_enc", "W_dec")]
    W_enc, b_enc, W_dec = leaves
    error = torch.randn(32, D, generator=torch.Generator().manual_seed(5))
    pre = b["z"] @ W_enc.T + b_enc
    f = pre[:, dead].relu()  # four dead features: all of them are among the AUX_FEATURES largest
    weight = batch_topk.AUX_WEIGHT * len(dead) / (D / 2)
    (weight * (f @ W_dec[dead] + error).square().sum() / 32).backward()

    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    batch_topk._add_auxiliary(gradients, b["z"], pre.detach(), W_dec.detach(), error, dead)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        torch.testing.assert_close(gradient, leaf.grad, atol=1e-5, rtol=1e-4)
