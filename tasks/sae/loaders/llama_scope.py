"""Llama Scope (arXiv 2410.20526): `hyperparams.json` and `checkpoints/final.safetensors`, by OpenMOSS.

The semantics are those of the authors' own loader (Language-Model-SAEs, `SparseAutoEncoder.from_config`). With
s_in = sqrt(d) / average norm of the input over the data set, s_out likewise, and n_j = |decoder column j|:

1. scales: b_enc / s_in, b_dec / s_out, W_dec * s_in / s_out, so that the encoder reads raw residual vectors;
2. unit decoder: W_dec / n, W_enc * n, b_enc * n;
3. gate: f = pre where pre > jump_relu_threshold, else 0. The threshold thus lives in raw units times decoder norm.

The authors fold in bfloat16, here it is float32: values agree to bfloat16's 3 digits. SAELens reads the same files
with its activations larger by s_in / n and its gate without the decoder norm.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.sae import sites
from tasks.sae.loaders.common import (
    Dims,
    canonical,
    need,
    per_token,
    read_json,
    read_safetensors,
    refuse,
    relu,
    take,
    threshold,
    topk,
)
from tasks.sae.locate import Files
from tasks.sae.sae import SAE, Gate

FILES = Files(
    config="hyperparams.json",
    weights="checkpoints/final.safetensors",
    # Llama3_1-8B-Base-L15R-8x; some are spelled Llama3_1Base-L18TC-8x. Other sites match too, to be refused by name.
    folders=("Llama3_1*-L{layer}R-*x", "Llama3_1*-L{layer}[AMT]*-*x"),
)


def check(folder: Path, layer: int) -> Dims:
    """Read the configuration only. Raises BadInput for what `load` would refuse because of it."""
    path = folder / FILES.config
    config = read_json(path)
    site_in, site_out = need(config, "hook_point_in", path), config.get("hook_point_out")
    sites.check_layer(site_in, layer)
    if site_out not in (None, site_in):
        raise refuse(
            path,
            f"reads {site_in} and predicts {site_out}",
            "a transcoder does not reconstruct the vector that it reads, so its features cannot edit it",
            "use the residual-stream dictionaries (R)",
        )
    if config.get("use_glu_encoder"):
        raise refuse(path, "use_glu_encoder", "a gated linear encoder has no single direction per feature")
    if config.get("act_fn", "relu").lower() not in ("relu", "jumprelu", "topk"):
        raise refuse(path, f"act_fn = {config['act_fn']!r}", "this activation function is not known")
    if (theta := config.get("jump_relu_threshold", 0.0)) < 0:
        raise refuse(path, f"jump_relu_threshold = {theta}", "it lets negative activations through")
    d_model = need(config, "d_model", path)
    _scales(config, path, d_model)
    return Dims(d_model, config.get("d_sae") or d_model * need(config, "expansion_factor", path))


def load(folder: Path, layer: int, name: str) -> SAE:
    """Raises BadInput for files that are broken, of another layer, or can't be folded exactly."""
    dims = check(folder, layer)
    path = folder / FILES.config
    config = read_json(path)
    s_in, s_out = _scales(config, path, dims.d_model)
    weights = folder / FILES.weights
    tensors = read_safetensors(weights)
    encoder, b_enc, decoder = take(tensors, ("encoder.weight", "encoder.bias", "decoder.weight"), weights)
    has_b_dec = config.get("use_decoder_bias", True)
    b_dec = take(tensors, ["decoder.bias"], weights)[0] / s_out if has_b_dec else torch.zeros(dims.d_model)
    W_enc, W_dec, b_enc = encoder.T, decoder.T * (s_in / s_out), b_enc / s_in
    return canonical(
        layer,
        name,
        W_enc,
        b_enc,
        W_dec,
        b_dec,
        _gate(config, path, b_enc),
        centred=has_b_dec and config.get("apply_decoder_bias_to_pre_encoder", True),
        unit_decoder=config.get("sparsity_include_decoder_norm", True),
    )


def _scales(config: dict[str, Any], path: Path, d_model: int) -> tuple[float, float]:
    """(s_in, s_out)"""
    mode = config.get("norm_activation", "token-wise")
    if mode in ("none", "inference"):
        return 1.0, 1.0
    if mode != "dataset-wise":
        raise per_token(path, f"norm_activation = {mode!r}")
    norms = need(config, "dataset_average_activation_norm", path)
    return math.sqrt(d_model) / norms["in"], math.sqrt(d_model) / norms["out"]


def _gate(config: dict[str, Any], path: Path, b_enc: Tensor) -> Gate:
    activation = config.get("act_fn", "relu").lower()
    theta = config.get("jump_relu_threshold", 0.0)
    if activation == "topk" and theta == 0:
        return topk(need(config, "top_k", path), b_enc.shape[0], path)
    return relu(b_enc) if activation == "relu" else threshold(theta, b_enc)
