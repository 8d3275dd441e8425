"""How well a dictionary reconstructs, and how sparsely. Pure functions of batches of residual vectors."""

from __future__ import annotations

from torch import Tensor


def explained_variance(x: Tensor, x_hat: Tensor) -> float:
    """1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2 over the tokens of x [n, d] and x_hat [n, d].

    1 is perfect, 0 is as good as the mean vector of these tokens, negative is worse. Also called one minus the
    fraction of variance unexplained (FVU). Sums are in float64.
    """
    x, x_hat = x.double(), x_hat.double()
    total = (x - x.mean(dim=0)).square().sum()
    return float(1 - (x - x_hat).square().sum() / total)


def l0(f: Tensor) -> float:
    """Mean number of active features per token: f [n, F] -> sum(f > 0) / n."""
    return float((f > 0).sum() / f.shape[0])


def dead_share(fired: Tensor) -> float:
    """Share of features that never fired: fired [F] bool -> mean(not fired)."""
    return float((~fired).double().mean())
