"""Measures against their formulas."""

from __future__ import annotations

import pytest
import torch

from tasks.sae.quality import dead_share, explained_variance, l0


def test_explained_variance() -> None:
    x = torch.tensor([[1.0, 0.0], [3.0, 4.0]])  # mean (2, 2), total variance 1 + 4 + 1 + 4
    x_hat = torch.tensor([[1.0, 1.0], [3.0, 2.0]])  # errors 1 and 4
    assert explained_variance(x, x_hat) == pytest.approx(1 - 5 / 10)
    assert explained_variance(x, x) == 1
    assert explained_variance(x, x.mean(dim=0).expand(2, 2)) == pytest.approx(0)


def test_explained_variance_of_far_away_vectors_keeps_its_digits() -> None:
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    assert explained_variance(x + 1e4, x + 1e4 + 0.5) == pytest.approx(explained_variance(x, x + 0.5), rel=1e-2)


def test_l0_and_dead_share() -> None:
    f = torch.tensor([[0.0, 2.0, 0.0, 1.0], [0.0, 3.0, 0.0, 0.0]])
    assert l0(f) == 1.5
    assert dead_share((f > 0).any(dim=0)) == 0.5
