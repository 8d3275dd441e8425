"""A tiny model, dictionaries of every gate, and a bank over them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tasks.engines.bank import Bank
from tasks.engines.interface import Edit, Trial
from tasks.models.layout import Layout
from tasks.sae.sae import SAE, Threshold, TopK
from tests.models.tiny import tiny_model

D_SAE = 96


def random_sae(layer: int, d_model: int, gate: str, seed: int = 0) -> SAE:
    """A random dictionary whose features are active on about a third of the tokens."""
    g = torch.Generator().manual_seed(1000 * seed + layer)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    theta = {"relu": torch.zeros(D_SAE), "jumprelu": torch.rand(D_SAE, generator=g), "topk": None}[gate]
    return SAE(
        layer=layer,
        W_enc=draw(d_model, D_SAE) / d_model**0.5,
        b_enc=draw(D_SAE) * 0.1,
        W_dec=torch.nn.functional.normalize(draw(D_SAE, d_model), dim=-1),
        b_dec=draw(d_model) * 0.1,
        gate=TopK(12) if theta is None else Threshold(theta),
        name=f"random {gate}",
    )


class Bench:
    """Everything a test of the engine needs."""

    def __init__(self, architecture: str = "llama", gate: str = "jumprelu", dtype: torch.dtype = torch.float32):
        model = tiny_model(architecture).to(dtype)
        if getattr(model.config, "attn_logit_softcapping", None):
            model.set_attn_implementation("eager")  # sdpa has no soft cap and leaves it out in silence
        layout = Layout.of(model)
        self.loaded = SimpleNamespace(model=model, layout=layout)
        self.model, self.layout = model, layout
        self.saes = {layer: random_sae(layer, layout.d_model, gate) for layer in (0, 2, 3)}
        features = [(0, 5), (0, 17), (2, 3), (2, 40), (2, 77), (3, 9)]
        self.bank = Bank.build(self.saes.__getitem__, features).with_random_controls(seed=7)

    def prompts(self, n: int, seed: int = 0, low: int = 2, high: int = 24) -> list[tuple[int, ...]]:
        rng = np.random.default_rng(seed)
        return [tuple(rng.integers(3, 120, rng.integers(low, high)).tolist()) for _ in range(n)]

    def trials(self, n: int, seed: int = 0, max_new_tokens: int = 10, **fixed) -> list[Trial]:
        """A random mix of prompts, rows, values, scopes, modes and sampling settings."""
        rng = np.random.default_rng(seed)
        prompts = self.prompts(4, seed)
        out = []
        for i in range(n):
            mode = rng.choice(["keep_error", "keep_error", "reconstruct"])
            value = None if mode == "reconstruct" and rng.random() < 0.3 else float(rng.normal() * 3)
            scope = rng.choice(["last", "decode", "all"])
            edit = Edit(int(rng.integers(len(self.bank))), value, str(scope), str(mode))
            settings = {
                "temperature": float(rng.choice([0.0, 0.7, 1.0])),
                "top_p": float(rng.choice([1.0, 0.8])),
                "edit": edit if rng.random() < 0.85 else None,
                "max_new_tokens": int(rng.integers(1, max_new_tokens + 1)),
            } | fixed
            out.append(Trial(id=i, prompt=prompts[rng.integers(4)], seed=int(rng.integers(2**63)), **settings))
        return out


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()
