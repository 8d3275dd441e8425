"""Sampling: the distribution, and that one uniform decides one token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tasks.engines.sampling import BLOCK, distribution, group_probabilities, sample, uniforms
from tests.engines.naive import probabilities


def settings(batch: int, temperature: float, top_p: float = 1.0):
    return torch.full((batch,), temperature), torch.full((batch,), top_p)


@pytest.mark.parametrize("vocabulary", [2, BLOCK, BLOCK + 1, 5 * BLOCK + 17])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_a_token_is_the_inverse_of_the_cumulative_distribution(vocabulary, temperature, top_p):
    torch.manual_seed(0)
    logits, uniform = torch.randn(64, vocabulary) * 3, torch.rand(64, dtype=torch.float64)
    tokens = sample(logits.clone(), *settings(64, temperature, top_p), uniform)
    for row, u, token in zip(logits, uniform.numpy(), tokens.tolist(), strict=True):
        p = probabilities(row, temperature, top_p)
        edges = np.cumsum(p) / p.sum()
        low = edges[token - 1] if token else 0.0
        assert low - 1e-6 <= u <= edges[token] + 1e-6
        assert p[token] > 0


def test_extreme_uniforms_never_draw_a_token_of_probability_zero():
    logits = torch.full((4, 3 * BLOCK), float("-inf"))
    logits[:, BLOCK + 3], logits[:, BLOCK + 9] = 0.0, 1.0
    uniform = torch.tensor([0.0, 1e-300, 1 - 2**-53, 0.5], dtype=torch.float64)
    tokens = sample(logits, *settings(4, 1.0), uniform)
    assert tokens.tolist() == [BLOCK + 3, BLOCK + 3, BLOCK + 9, BLOCK + 9]


def test_uniforms_at_the_edges_of_blocks_draw_what_has_weight():
    """Weights that float32 sums round in every block, some blocks and most tokens with none at all."""
    rng = np.random.default_rng(0)
    logits = torch.full((1, 9 * BLOCK), float("-inf"))
    chosen = rng.choice(np.r_[: 3 * BLOCK, 5 * BLOCK : 8 * BLOCK], 600, replace=False)
    logits[0, chosen] = torch.from_numpy(rng.normal(size=600) * 4).float()
    p = probabilities(logits[0], 1.0, 1.0)
    edges = np.cumsum(p)
    near = edges[BLOCK - 1 :: BLOCK]
    uniform = np.concatenate([[0.0, 1 - 2**-53], *[np.nextafter(near, side) for side in (0, 1)], near, near + 1e-9])
    uniform = np.clip(uniform, 0, 1 - 2**-53)
    tokens = sample(logits.repeat(len(uniform), 1), *settings(len(uniform), 1.0), torch.from_numpy(uniform)).numpy()
    assert (p[tokens] > 0).all()
    low = np.where(tokens > 0, edges[tokens - 1], 0.0)
    assert ((low - 1e-6 <= uniform) & (uniform <= edges[tokens] + 1e-6)).all()


def test_frequencies_follow_the_distribution():
    torch.manual_seed(1)
    row = torch.randn(12) * 1.5
    n = 20_000
    uniform = torch.from_numpy(np.concatenate([uniforms(seed, 10) for seed in range(n // 10)]))
    tokens = sample(row.repeat(n, 1), *settings(n, 0.7, 0.9), uniform)
    expected = probabilities(row, 0.7, 0.9) * n
    kept = expected > 0
    counts = np.bincount(tokens, minlength=12)
    assert counts[~kept].sum() == 0
    assert chisquare(counts[kept], expected[kept]).pvalue > 1e-4


def test_greedy_rows_take_the_most_probable_token_among_sampled_rows():
    logits = torch.tensor([[0.0, 5.0, 1.0], [2.0, 2.0, -9.0], [0.0, 0.0, 0.0]])
    temperature = torch.tensor([0.0, 0.0, 1.0])
    tokens = sample(logits, temperature, torch.ones(3), torch.tensor([0.9, 0.9, 0.99], dtype=torch.float64))
    assert tokens.tolist() == [1, 0, 2]


def test_a_trials_uniforms_depend_on_its_seed_alone():
    assert np.array_equal(uniforms(7, 5), uniforms(7, 9)[:5])
    assert not np.array_equal(uniforms(7, 5), uniforms(8, 5))
    assert uniforms(2**63 - 1, 3).shape == (3,)


def test_group_probabilities_are_sums_of_the_distribution():
    torch.manual_seed(2)
    logits, groups = torch.randn(5, 40), [torch.tensor([1, 2]), torch.tensor([39])]
    p = distribution(logits, *settings(5, 0.7, 0.9))
    mass = group_probabilities(logits, groups, 0.7, 0.9)
    np.testing.assert_allclose(mass[:, 0], p[:, 1] + p[:, 2], rtol=1e-6)
    greedy = group_probabilities(logits, [logits.argmax(-1)[:1]], 0.0, 1.0)
    assert greedy[0, 0] == 1.0
    assert torch.equal(group_probabilities(logits, None, 0.7, 0.9), p.double())
