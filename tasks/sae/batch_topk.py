"""A compact BatchTopK trainer (Bussmann, Leask, Nanda 2024, arXiv 2412.06410), fast on a few CPU cores.

Each batch of B tokens keeps its B * k largest positive pre-activations, wherever they are. The mean over the last
batches of the smallest one kept becomes the threshold, so that at inference the dictionary is a JumpReLU and each
feature depends on its own pre-activation only.

Vectors are centred and scaled to a mean square of one per dimension for training; mean and scale are folded into the
result. What makes it fast:

- decoder rows start as training vectors and the encoder as their transpose, scaled to the best reconstruction;
- gradients are written out, so that only the two products with all features are dense (in `precision`), and all
  other sums are over the B * k active pairs (`embedding_bag`: a bag is a token, or a feature);
- the largest pre-activations are searched for among those near the last batch's threshold.

B tokens, F features, d dimensions. The same input gives the same bytes for the same number of torch threads; sums over
whole matrices are split among threads, so another number gives other last bits (`side_by_side` uses one).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from tasks.errors import BadInput
from tasks.sae.sae import SAE, Threshold

BATCH = 1024
LEARNING_RATE = 0.2
"""Over sqrt(F); warmed up, then falling to zero over the last 40 % of the steps."""
WARMUP_STEPS = 50
DEAD_AFTER = 20_000
"""Tokens without firing after which the auxiliary loss trains a feature."""
AUX_FEATURES, AUX_WEIGHT = 64, 1 / 8
"""The k largest dead features of each token learn to predict its error (AuxK, Gao et al. 2024, arXiv 2406.04093)."""


@dataclass(frozen=True, eq=False)
class Trained:
    sae: SAE
    fired: Tensor
    """[F] bool: kept for some token of the last epoch."""
    error: float
    """Mean of |x - x_hat|^2 / |x - mean|^2 over the last epoch's batches, as trained."""


@dataclass(frozen=True, eq=False)
class Active:
    """The active pairs of a batch, by token and by feature. P <= B * k pairs."""

    token: Tensor
    """[P], rising"""
    feature: Tensor
    """[P]"""
    value: Tensor
    """[P] > 0"""
    by_token: Tensor
    """[B + 1]: pairs of token b are by_token[b] to by_token[b + 1]."""
    order: Tensor
    """[P]: sorts the pairs by feature."""
    by_feature: Tensor
    """[F + 1]"""

    @classmethod
    def of(cls, flat: Tensor, value: Tensor, shape: torch.Size) -> Active:
        """From positions `flat` [P] in a matrix of `shape` [B, F], rising, and the values there."""
        token, feature = flat // shape[1], flat % shape[1]
        order = feature.argsort(stable=True)
        return cls(token, feature, value, _starts(token, shape[0]), order, _starts(feature, shape[1]))

    def over_features(self, weight: Tensor, rows: Tensor) -> Tensor:
        """[B, d]: for each token the sum of weight [P] * rows [F, d] over its features."""
        return embedding_bag(
            self.feature, rows, self.by_token, mode="sum", per_sample_weights=weight, include_last_offset=True
        )

    def over_tokens(self, weight: Tensor, rows: Tensor) -> Tensor:
        """[F, d]: for each feature the sum of weight [P] * rows [B, d] over the tokens where it is active."""
        return embedding_bag(
            self.token[self.order],
            rows,
            self.by_feature,
            mode="sum",
            per_sample_weights=weight[self.order],
            include_last_offset=True,
        )


def largest(pre: Tensor, count: int, near: float) -> tuple[Tensor, Tensor]:
    """(positions [P] in pre.flatten(), rising, and values in float32) of its `count` largest entries that are positive.

    near: a guess of the smallest of them; a good one spares sorting the whole matrix, none changes the result.
    """
    flat = pre.flatten()
    candidates = (flat > 0.7 * near).nonzero().squeeze(1) if near > 0 else None
    if candidates is None or len(candidates) < count:
        candidates = (flat > 0).nonzero().squeeze(1)
    count = min(count, len(candidates))
    found = candidates[flat[candidates].topk(count, sorted=False).indices].sort().values
    return found, flat[found].float()


def train(
    x: Tensor,
    layer: int,
    name: str,
    *,
    d_sae: int,
    k: int,
    epochs: int,
    seed: int,
    precision: torch.dtype = torch.bfloat16,
    on_step: Callable[[int, float], None] = lambda tokens, error: None,
) -> Trained:
    """Train one dictionary on residual vectors x [n, d] of any precision, on x's device.

    Decoder rows have unit norm, so that an activation is the length of the step it makes in the residual stream.
    on_step: called with the tokens trained on so far and the batch's share of unexplained variance.

    Raises:
        BadInput: fewer vectors than features, or more active features than there are.
    """
    n, d = x.shape
    if n < d_sae:
        raise BadInput("settings.tokens", n, f"{d_sae} features start as {d_sae} different tokens", "read more text")
    if k > d_sae:
        raise BadInput("settings.k", k, f"there are {d_sae} features", "use a smaller k")
    rng = torch.Generator().manual_seed(seed)
    mean = x.mean(dim=0, dtype=torch.float64).float()
    z = x.float() - mean
    scale = float(z.square().mean().rsqrt())
    z *= scale

    batch = min(BATCH, n)
    W_dec = normalize(z[_random_order(n, rng, z)[:d_sae]], dim=1)
    W_enc = W_dec * _first_scale(z[_random_order(n, rng, z)[:batch]], W_dec, k)
    b_enc, b_dec = W_enc.new_zeros(d_sae), W_enc.new_zeros(d)
    parameters = [W_enc, b_enc, W_dec, b_dec]
    optimizer = torch.optim.Adam(parameters, fused=True)

    per_epoch = n // batch
    steps = per_epoch * epochs
    since_fired = torch.zeros(d_sae, dtype=torch.int64, device=z.device)
    near, smallest, errors = 0.0, [], []
    for step in range(steps):
        if step % per_epoch == 0:
            order = _random_order(n, rng, z)
        at = step % per_epoch * batch
        zb = z[order[at : at + batch]]
        pre = torch.addmm(b_enc.to(precision), zb.to(precision), W_enc.to(precision).T)
        flat, value = largest(pre, batch * k, near)
        active = Active.of(flat, value, pre.shape)
        near = float(value.min()) if len(value) else 0.0

        error = active.over_features(value, W_dec) + b_dec - zb
        dead = (since_fired >= DEAD_AFTER).nonzero().squeeze(1)
        gradients = _gradients(zb, W_dec, active, error, precision)
        if len(dead):
            _add_auxiliary(gradients, zb, pre, W_dec, error, dead)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, math.sqrt(d))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE / math.sqrt(d_sae) * _schedule(step, steps)
        optimizer.step()
        W_dec /= W_dec.norm(dim=1, keepdim=True)

        since_fired += batch
        since_fired[active.feature] = 0
        unexplained = float(error.norm() / zb.norm()) ** 2
        if not math.isfinite(unexplained):
            raise BadInput("settings", seed, f"the training diverged at step {step}", "use precision float32")
        on_step((step + 1) * batch, unexplained)
        if step >= steps * 3 // 4:
            smallest.append(near)
        if step >= steps - per_epoch:
            errors.append(unexplained)

    theta = sum(smallest) / len(smallest) / scale
    sae = SAE(
        layer=layer,
        W_enc=W_enc.T.contiguous(),
        b_enc=b_enc / scale - W_enc @ mean,
        W_dec=W_dec,
        b_dec=b_dec / scale + mean,
        gate=Threshold(torch.full_like(b_enc, theta)),
        name=name,
    )
    return Trained(sae, since_fired < per_epoch * batch, sum(errors) / len(errors))


def _random_order(n: int, rng: torch.Generator, like: Tensor) -> Tensor:
    """[n]: drawn on the CPU, so that it is the same on every device."""
    return torch.randperm(n, generator=rng).to(like.device)


def _first_scale(z: Tensor, W_dec: Tensor, k: int) -> float:
    """The factor on encoder rows equal to decoder rows that makes the first reconstruction the best one."""
    pre = z @ W_dec.T
    flat, value = largest(pre, len(z) * k, 0.0)
    z_hat = Active.of(flat, value, pre.shape).over_features(value, W_dec)
    return float((z * z_hat).sum() / z_hat.square().sum())


def _gradients(z: Tensor, W_dec: Tensor, active: Active, error: Tensor, precision: torch.dtype) -> list[Tensor]:
    """Of sum |error|^2 / B with respect to W_enc, b_enc, W_dec and b_dec."""
    g = error * (2 / len(z))
    g_value = (g.to(precision) @ W_dec.to(precision).T)[active.token, active.feature].float()
    return [
        active.over_tokens(g_value, z),
        active.over_tokens(g_value, torch.ones_like(z[:, :1])).squeeze(1),
        active.over_tokens(active.value, g),
        g.sum(dim=0),
    ]


def _add_auxiliary(gradients: list[Tensor], z: Tensor, pre: Tensor, W_dec: Tensor, error: Tensor, dead: Tensor) -> None:
    """Add the gradients of AUX_WEIGHT * sum |dead features' reconstruction of -error + error|^2 / B."""
    silent = pre[:, dead].float().relu()
    top = silent.topk(min(AUX_FEATURES, len(dead)), dim=1, sorted=False)
    f = torch.zeros_like(silent).scatter_(1, top.indices, top.values)
    share = min(len(dead) / (z.shape[1] / 2), 1.0)
    g = (f @ W_dec[dead] + error) * (2 * AUX_WEIGHT * share / len(z))
    g_f = (g @ W_dec[dead].T) * (f > 0)
    gradients[0][dead] += g_f.T @ z
    gradients[1][dead] += g_f.sum(dim=0)
    gradients[2][dead] += f.T @ g


def _schedule(step: int, steps: int) -> float:
    warm = min((step + 1) / min(WARMUP_STEPS, max(steps // 4, 1)), 1.0)
    return warm * min((steps - step) / (0.4 * steps), 1.0)


def _starts(sorted_or_not: Tensor, bags: int) -> Tensor:
    """[bags + 1]: where each bag begins when the members are sorted by bag."""
    starts = torch.zeros(bags + 1, dtype=torch.int64, device=sorted_or_not.device)
    starts[1:] = torch.bincount(sorted_or_not, minlength=bags).cumsum(0)
    return starts
