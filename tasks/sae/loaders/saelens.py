"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, of SAELens 6 and of the versions before it.

Activations are those that SAELens returns from `encode` in float32:

- standard (ReLU), jumprelu, topk; gated, whose two paths share their directions and so fold into one threshold;
- batchtopk and matryoshka_batchtopk training checkpoints, with their running threshold (saved for inference, both
  are jumprelu);
- `rescale_acts_by_decoder_norm`: activations of unit decoder rows, as SAELens's.

Refused, since they have no exact canonical form: scalings by a factor of each token, scalings whose factor is not in
the files, places other than the residual stream, transcoders, temporal and matching-pursuit dictionaries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tasks.sae import sites
from tasks.sae.loaders.common import Dims, canonical, fold_gated, per_token, refuse, relu, threshold, topk
from tasks.sae.loaders.fields import flag, section, whole, word
from tasks.sae.loaders.files import read_json, read_safetensors, take
from tasks.sae.locate import LAYOUTS
from tasks.sae.sae import SAE

FILES = LAYOUTS["saelens"]

BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")
ARCHITECTURES = ("standard", "jumprelu", "topk", "gated", *BATCH_TOPK)
PER_TOKEN = ("layer_norm", "constant_norm_rescale")
SCALING = ("scaling_factor", "finetuning_scaling_factor")
"""Tensors of old files that decide nothing where they are 1."""
_NOT_FOLDED = "the factor is not in the files; SAELens leaves it out without a word"


def check(folder: Path, layer: int) -> Dims:
    """Read the configuration only. Raises BadInput for what `load` would refuse because of it."""
    path = folder / FILES.config
    config = _modern(read_json(path), path)
    _check_site(config, path, layer)
    if config["architecture"] not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise refuse(path, f"architecture {config['architecture']!r}", f"has no canonical form; known are {known}")
    if config["activation_fn"] != "relu":
        raise refuse(path, f"activation_fn {config['activation_fn']!r}", "only ReLU gates have a canonical form")
    normalize = config["normalize_activations"]
    if normalize in PER_TOKEN:
        raise per_token(path, f"normalize_activations = {normalize!r}")
    if normalize != "none":
        remedy = "fold it with SAELens (fold_activation_norm_scaling_factor), save the dictionary and load that"
        raise refuse(path, f"normalize_activations = {normalize!r}", _NOT_FOLDED, remedy)
    return Dims(config["d_in"], config["d_sae"])


def load(folder: Path, layer: int, name: str) -> SAE:
    """Raises BadInput for files that are broken, of another layer, or can't be folded exactly."""
    dims = check(folder, layer)
    path, weights = folder / FILES.config, folder / FILES.weights
    config = _modern(read_json(path), path)
    tensors = read_safetensors(weights)
    d, width = dims.d_model, dims.d_sae
    for key in SCALING:
        if key in tensors and not torch.allclose(tensors[key].float(), torch.ones(())):
            raise refuse(weights, key, "a fine-tuned factor per feature is not supported by SAELens 6 either")
    architecture = config["architecture"]
    shapes = {"W_enc": (d, width), "W_dec": (width, d), "b_dec": (d,)} | {
        "gated": {"r_mag": (width,), "b_gate": (width,), "b_mag": (width,)},
        "jumprelu": {"b_enc": (width,), "threshold": (width,)},
        "batchtopk": {"b_enc": (width,), "topk_threshold": ()},
        "matryoshka_batchtopk": {"b_enc": (width,), "topk_threshold": ()},
    }.get(architecture, {"b_enc": (width,)})
    W_enc, W_dec, b_dec, *of_gate = take(tensors, shapes, weights, SCALING)
    if architecture == "gated":
        W_enc, b_enc, theta = fold_gated(W_enc, *of_gate)
        gate = threshold(theta, b_enc)
    else:
        b_enc, *thetas = of_gate
        if architecture == "topk":
            gate = topk(whole(config, "k", path), width, path)
        else:
            gate = threshold(thetas[0], b_enc) if thetas else relu(b_enc)
    return canonical(
        layer,
        name,
        W_enc,
        b_enc,
        W_dec,
        b_dec,
        gate,
        centred=config["apply_b_dec_to_input"],
        unit_decoder=config["rescale_acts_by_decoder_norm"],
    )


def _modern(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields read here under their SAELens 6 names, with the defaults that SAELens gives to old files."""
    old = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
    given = {old.get(key, key): value for key, value in config.items() if value is not None}
    given |= {key: value for key, value in section(given, "metadata", path, {}).items() if value is not None}
    kwargs = section(given, "activation_fn_kwargs", path, {})
    activation = word(given, "activation_fn", path, "relu")
    architecture = word(given, "architecture", path, "standard")
    if activation == "topk":
        activation, architecture = "relu", "topk"
    normalize = given.get("normalize_activations") or "none"
    rescales = flag(given, "rescale_acts_by_decoder_norm", path, False)
    return {
        "architecture": architecture,
        "activation_fn": activation,
        "k": given.get("k", kwargs.get("k")),
        "d_in": whole(given, "d_in", path),
        "d_sae": whole(given, "d_sae", path),
        "hook_name": given.get("hook_name") or given.get("hf_hook_name"),
        "hook_head_index": given.get("hook_head_index"),
        "model_kwargs": section(given, "model_from_pretrained_kwargs", path, {}),
        "apply_b_dec_to_input": flag(given, "apply_b_dec_to_input", path, True),
        "rescale_acts_by_decoder_norm": architecture in ("topk", *BATCH_TOPK) and rescales,
        "normalize_activations": "expected_average_only_in" if normalize is True else normalize,
    }


def _check_site(config: dict[str, Any], path: Path, layer: int) -> None:
    sites.check_layer(word(config, "hook_name", path), layer)
    if config["hook_head_index"] is not None:
        raise refuse(path, f"hook_head_index = {config['hook_head_index']}", "it reads one attention head")
    if config["model_kwargs"].get("center_writing_weights"):
        raise refuse(
            path,
            "center_writing_weights",
            "it was trained on TransformerLens's stream with the mean over dimensions taken out, which is not the "
            "residual stream of the model itself",
        )
