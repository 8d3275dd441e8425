"""The canonical SAE as a SAELens folder, for every tool that reads those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tasks.sae.sae import SAE, Threshold

FORMAT_VERSION = "6.0.0"
"""The SAELens release whose file format this is."""


def tensors(sae: SAE) -> dict[str, Tensor]:
    """What `sae_weights.safetensors` holds: a jumprelu dictionary for raw residual vectors."""
    if not isinstance(sae.gate, Threshold):
        raise TypeError(f"{sae.name} has a {sae.gate.kind} gate; only thresholds are exported")
    named = {
        "W_enc": sae.W_enc,
        "b_enc": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
        "threshold": sae.gate.theta,
    }
    return {name: tensor.float().cpu().contiguous() for name, tensor in named.items()}


def config(d_model: int, d_sae: int, layer: int, model_name: str, convention: str) -> dict[str, Any]:
    """What `cfg.json` holds. The hook is the residual stream after block `layer`."""
    return {
        "architecture": "jumprelu",
        "d_in": d_model,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": FORMAT_VERSION,
            "model_name": model_name,
            "hook_name": f"blocks.{layer}.hook_resid_post",
            "activation_unit": convention,
        },
    }


def write_folder(folder: Path, weights: dict[str, Tensor], cfg: dict[str, Any]) -> Path:
    """`cfg.json` and `sae_weights.safetensors`, as `SAE.load_from_disk` of SAELens reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg, indent=2) + "\n")
    return folder
