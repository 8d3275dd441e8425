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

import torch
from torch import Tensor

from tasks.sae import sites
from tasks.sae.loaders.common import Dims, canonical, per_token, refuse, relu, threshold, topk
from tasks.sae.loaders.fields import Config, flag, n_features, number, positive, section, whole, word
from tasks.sae.loaders.files import read_json, read_safetensors, take
from tasks.sae.locate import LAYOUTS
from tasks.sae.sae import SAE, Gate

FILES = LAYOUTS["llama_scope"]


def check(folder: Path, layer: int) -> Dims:
    """Read the configuration only. Raises BadInput for what `load` would refuse because of it."""
    path = folder / FILES.config
    config = read_json(path)
    site_in = word(config, "hook_point_in", path)
    site_out = word(config, "hook_point_out", path, site_in)
    sites.check_layer(site_in, layer)
    if site_out != site_in:
        raise refuse(
            path,
            f"reads {site_in} and predicts {site_out}",
            "a transcoder does not reconstruct the vector that it reads, so its features cannot edit it",
            "use the residual-stream dictionaries (R)",
        )
    if flag(config, "use_glu_encoder", path, False):
        raise refuse(path, "use_glu_encoder", "a gated linear encoder has no single direction per feature")
    if (activation := word(config, "act_fn", path, "relu")).lower() not in ("relu", "jumprelu", "topk"):
        raise refuse(path, f"act_fn = {activation!r}", "this activation function is not known")
    if (theta := number(config, "jump_relu_threshold", path, 0.0)) < 0:
        raise refuse(path, f"jump_relu_threshold = {theta}", "it lets negative activations through")
    d_model = whole(config, "d_model", path)
    _scales(config, path, d_model)
    return Dims(d_model, n_features(config, "d_sae", d_model, path))


def load(folder: Path, layer: int, name: str) -> SAE:
    """Raises BadInput for files that are broken, of another layer, or can't be folded exactly."""
    dims = check(folder, layer)
    path = folder / FILES.config
    config = read_json(path)
    s_in, s_out = _scales(config, path, dims.d_model)
    weights = folder / FILES.weights
    d, width = dims.d_model, dims.d_sae
    shapes = {"encoder.weight": (width, d), "encoder.bias": (width,), "decoder.weight": (d, width)}
    has_b_dec = flag(config, "use_decoder_bias", path, True)
    if has_b_dec:
        shapes["decoder.bias"] = (d,)
    encoder, b_enc, decoder, *biases = take(read_safetensors(weights), shapes, weights)
    b_dec = biases[0] / s_out if biases else torch.zeros(d)
    W_enc, W_dec, b_enc = encoder.T, decoder.T * (s_in / s_out), b_enc / s_in
    return canonical(
        layer,
        name,
        W_enc,
        b_enc,
        W_dec,
        b_dec,
        _gate(config, path, b_enc),
        centred=has_b_dec and flag(config, "apply_decoder_bias_to_pre_encoder", path, True),
        unit_decoder=flag(config, "sparsity_include_decoder_norm", path, True),
    )


def _scales(config: Config, path: Path, d_model: int) -> tuple[float, float]:
    """(s_in, s_out), from the average norms under `in` and `out`, or under the hook point as later releases have it."""
    mode = word(config, "norm_activation", path, "token-wise")
    if mode in ("none", "inference"):
        return 1.0, 1.0
    if mode != "dataset-wise":
        raise per_token(path, f"norm_activation = {mode!r}")
    field, hook_point = "dataset_average_activation_norm", word(config, "hook_point_in", path)
    norms = {f"{field}.{key}": norm for key, norm in section(config, field, path).items()}
    by_hook_point = f"{field}.{hook_point}" in norms
    norm_in = positive(norms, f"{field}.{hook_point if by_hook_point else 'in'}", path)
    norm_out = positive(norms, f"{field}.{hook_point if by_hook_point else 'out'}", path)
    return math.sqrt(d_model) / norm_in, math.sqrt(d_model) / norm_out


def _gate(config: Config, path: Path, b_enc: Tensor) -> Gate:
    activation = word(config, "act_fn", path, "relu").lower()
    theta = number(config, "jump_relu_threshold", path, 0.0)
    if activation == "topk" and theta == 0:
        return topk(whole(config, "top_k", path), b_enc.shape[0], path)
    return relu(b_enc) if activation == "relu" else threshold(theta, b_enc)
