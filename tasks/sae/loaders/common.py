"""What the loaders share: reading files, refusing what can't be used, putting the canonical SAE together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tasks.errors import BadInput
from tasks.sae.places import FIELD
from tasks.sae.sae import SAE, Gate, Threshold, TopK


@dataclass(frozen=True)
class Dims:
    """What a dictionary's configuration promises; None where it does not say."""

    d_model: int | None
    d_sae: int | None


def read_json(path: Path) -> dict[str, Any]:
    """Raises BadInput for a file that is not a JSON object."""
    try:
        content = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(FIELD, str(path), f"is not JSON ({error})", "download it again") from error
    if not isinstance(content, dict):
        raise BadInput(FIELD, str(path), "is not a JSON object", "check saes.kind")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, in the file's precision. Raises BadInput for a broken file."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadInput(FIELD, str(path), f"is not a safetensors file ({error})", "download it again") from error


def need(config: Mapping[str, Any], key: str, path: Path) -> Any:
    """config[key]; raises BadInput when it is missing."""
    if config.get(key) is None:
        raise BadInput(FIELD, str(path), f"has no {key}", "check saes.kind: the file is not of this format")
    return config[key]


def take(tensors: Mapping[str, Tensor], names: Iterable[str], path: Path) -> list[Tensor]:
    """The tensors of these names as float32; raises BadInput when one is missing."""
    missing = [name for name in names if name not in tensors]
    if missing:
        has = ", ".join(sorted(tensors))
        raise BadInput(FIELD, str(path), f"has no tensor {missing[0]}; it has {has}", "check saes.kind")
    return [tensors[name].float() for name in names]


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
    """
    if centred:
        b_enc = (b_enc.double() - b_dec.double() @ W_enc.double()).float()
    if unit_decoder:
        n = decoder_norms(W_dec)
        W_enc, b_enc, W_dec = W_enc * n, b_enc * n, W_dec / n[:, None]
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


def topk(k: Any, d_sae: int, path: Path) -> TopK:
    """Raises BadInput for a k that is no number of features."""
    if not isinstance(k, int) or not 0 < k <= d_sae:
        raise BadInput(FIELD, str(path), f"has k = {k!r}", f"k must be 1 to {d_sae}; download it again")
    return TopK(k)
