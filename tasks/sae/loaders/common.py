"""What the loaders share: refusing what can't be used, putting the canonical SAE together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tasks.errors import BadInput
from tasks.sae.loaders.files import all_finite
from tasks.sae.locate import FIELD
from tasks.sae.sae import SAE, Gate, Threshold, TopK


@dataclass(frozen=True)
class Dims:
    """What a dictionary's configuration promises; None where it does not say."""

    d_model: int | None
    d_sae: int | None


def refuse(path: Path, what: str, why: str, remedy: str = "use another dictionary") -> BadInput:
    """The error for a dictionary that is readable but can't be used exactly."""
    return BadInput(FIELD, str(path), f"{what}: {why}", remedy)


def per_token(path: Path, what: str) -> BadInput:
    """The error for an input scaling that differs from token to token."""
    return refuse(
        path,
        what,
        "the input is scaled by a factor of each token, so there is no one encoder in residual units",
        "use a dictionary without normalisation, or with one factor for the whole data set",
    )


def canonical(
    layer: int,
    name: str,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    gate: Gate,
    *,
    centred: bool = False,
    unit_decoder: bool = False,
) -> SAE:
    """The canonical SAE from W_enc [d, F], b_enc [F], W_dec [F, d], b_dec [d], all for raw residual vectors.

    centred: the format encodes x - b_dec. Folded: b_enc - b_dec @ W_enc.
    unit_decoder: the format's own activations are those of unit decoder rows. Folded: W_enc * n, b_enc * n,
        W_dec / n with n = |W_dec rows|; a threshold must already be in that unit.
    Raises BadInput where folding leaves float32.
    """
    if centred:
        b_enc = (b_enc.double() - b_dec.double() @ W_enc.double()).float()
    if unit_decoder:
        n = decoder_norms(W_dec)
        W_enc, b_enc, W_dec = W_enc * n, b_enc * n, W_dec / n[:, None]
    folded = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if isinstance(gate, Threshold):
        folded["threshold"] = gate.theta
    for field, values in folded.items():
        if not all_finite(values):
            problem = f"{field} in residual units is too large for float32"
            raise BadInput(FIELD, name, problem, "use another dictionary: this one's scales are broken")
    return SAE(layer, W_enc, b_enc, W_dec, b_dec, gate, name)


def decoder_norms(W_dec: Tensor) -> Tensor:
    """W_dec [F, d] -> [F]; a row of zeros counts as 1, so that dividing by it changes nothing."""
    norms = W_dec.norm(dim=1)
    return torch.where(norms > 0, norms, 1.0)


def threshold(theta: Tensor | float, like: Tensor) -> Threshold:
    """A gate with one threshold or one per feature. Formats drop negative activations: below 0 means 0."""
    return Threshold(torch.as_tensor(theta, dtype=torch.float32).clamp(min=0).expand_as(like).contiguous())


def relu(like: Tensor) -> Threshold:
    return threshold(0.0, like)


def fold_gated(W_enc: Tensor, r_mag: Tensor, b_gate: Tensor, b_mag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(W_enc, b_enc, theta) of a gated dictionary (arXiv 2404.16014), whose two paths share their directions.

    f = relu(p) where x @ W_enc + b_gate > 0, with p = x @ (W_enc exp(r_mag)) + b_mag. In terms of p the condition
    is p > b_mag - exp(r_mag) b_gate, so a threshold on p says the same.
    """
    scale = r_mag.exp()
    return W_enc * scale, b_mag, b_mag - scale * b_gate


def topk(k: int, d_sae: int, path: Path) -> TopK:
    """Raises BadInput for a k that is no number of features."""
    if not 0 < k <= d_sae:
        raise BadInput(FIELD, str(path), f"has k = {k}", f"k must be 1 to {d_sae}; download it again")
    return TopK(k)
