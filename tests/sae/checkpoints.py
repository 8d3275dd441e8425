"""Small random dictionaries written in each public format, byte for byte in its layout. Needs torch and safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D_MODEL, D_SAE = 12, 40


def weights(seed: int, d: int = D_MODEL, width: int = D_SAE) -> dict[str, Tensor]:
    """W_enc [d, F], b_enc, W_dec [F, d] with rows of different norms, b_dec, theta [F] > 0; float32."""
    rng = torch.Generator().manual_seed(seed)
    norms = 0.3 + 2 * torch.rand(width, 1, generator=rng)
    W_dec = torch.nn.functional.normalize(torch.randn(width, d, generator=rng), dim=1) * norms
    return {
        "W_enc": W_dec.T.clone() + 0.2 * torch.randn(d, width, generator=rng),
        "b_enc": 0.3 * torch.randn(width, generator=rng),
        "W_dec": W_dec,
        "b_dec": torch.randn(d, generator=rng),
        "theta": 0.2 + 2 * torch.rand(width, generator=rng),
    }


def residuals(seed: int, n: int = 24, d: int = D_MODEL) -> Tensor:
    """Vectors [n, d] float32 with a mean, as a residual stream has one."""
    rng = torch.Generator().manual_seed(1000 + seed)
    return 2 * torch.randn(n, d, generator=rng) + torch.randn(d, generator=rng)


def llama_scope(folder: Path, seed: int = 0, layer: int = 15, site: str = "hook_resid_post", **config: Any) -> Path:
    """`hyperparams.json` with the fields of the released files, `lm_config.json`, bfloat16 weights."""
    hook = f"blocks.{layer}.{site}"
    hyperparams = {
        "dtype": "torch.bfloat16",
        "hook_point_in": hook,
        "hook_point_out": hook,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "expansion_factor": 8,
        "d_model": D_MODEL,
        "d_sae": D_SAE,
        "bias_init_method": "all_zero",
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.330078125,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 5.8125, "out": 5.8125},
        "decoder_exactly_fixed_norm": False,
        "sparsity_include_decoder_norm": True,
        "use_glu_encoder": False,
        "init_decoder_norm": 0.5,
        "init_encoder_norm": None,
        "init_encoder_with_decoder_transpose": True,
        "top_k": 50,
    }
    w = weights(seed)
    tensors = {
        "encoder.weight": w["W_enc"].T,
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T,
        "decoder.bias": w["b_dec"],
    }
    _json(folder / "hyperparams.json", hyperparams | config)
    _json(folder / "lm_config.json", {"model_name": "meta-llama/Llama-3.1-8B", "d_model": D_MODEL, "max_length": 1024})
    (folder / "checkpoints").mkdir()
    _safetensors(folder / "checkpoints/final.safetensors", tensors, torch.bfloat16)
    return folder


def saelens(folder: Path, seed: int = 0, layer: int = 8, **config: Any) -> Path:
    """A jumprelu dictionary as SAELens 6 saves it; `config` goes over the fields of cfg.json."""
    w = weights(seed)
    cfg = {
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "model_name": "gpt2",
            "hook_name": f"blocks.{layer}.hook_resid_post",
        },
        "architecture": "jumprelu",
    }
    _json(folder / "cfg.json", cfg | config)
    tensors = {
        "W_enc": w["W_enc"],
        "b_enc": w["b_enc"],
        "W_dec": w["W_dec"],
        "b_dec": w["b_dec"],
        "threshold": w["theta"],
    }
    _safetensors(folder / "sae_weights.safetensors", tensors)
    return folder


def saelens_before_6(folder: Path, seed: int = 0, layer: int = 8, k: int | None = None, **config: Any) -> Path:
    """cfg.json as SAELens 3 wrote it: flat, with `hook_point`; ReLU, or TopK when `k` is given."""
    w = weights(seed)
    cfg = {
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": "gpt2-small",
        "hook_point": f"blocks.{layer}.hook_resid_post",
        "hook_point_layer": layer,
        "hook_point_head_index": None,
        "activation_fn_str": "relu" if k is None else "topk",
        "activation_fn_kwargs": {} if k is None else {"k": k},
        "normalize_activations": False,
        "sae_lens_version": "3.11.0",
    }
    _json(folder / "cfg.json", cfg | config)
    tensors = {key: w[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    _safetensors(folder / "sae_weights.safetensors", tensors | {"scaling_factor": torch.ones(D_SAE)})
    return folder


def gemma_scope(folder: Path, seed: int = 0) -> Path:
    w = weights(seed)
    folder.mkdir(parents=True)
    arrays = {key: w[key].numpy() for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    np.savez(folder / "params.npz", threshold=w["theta"].numpy(), **arrays)
    return folder


def sparsify(folder: Path, seed: int = 0, k: int = 6, **config: Any) -> Path:
    """The folder's name is the hookpoint, such as `layers.10`."""
    w = weights(seed)
    cfg = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": D_SAE,
        "k": k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D_MODEL,
    }
    _json(folder / "cfg.json", cfg | config)
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    _safetensors(folder / "sae.safetensors", tensors)
    return folder


def dictionary_learning(
    folder: Path, dict_class: str, seed: int = 0, layer: int = 8, k: int = 6, **trainer: Any
) -> Path:
    """`ae.pt` with the state dict of the class, `config.json` as the trainer writes it."""
    w = weights(seed)
    linear = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    matrices = {key: w[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    buffers = {"k": torch.tensor(k, dtype=torch.int), "threshold": torch.tensor(1.25)}
    state = {
        "AutoEncoder": linear | {"bias": w["b_dec"]},
        "AutoEncoderNew": linear | {"decoder.bias": w["b_dec"]},
        "AutoEncoderTopK": linear | {"b_dec": w["b_dec"]} | buffers,
        "BatchTopKSAE": linear | {"b_dec": w["b_dec"]} | buffers,
        "MatryoshkaBatchTopKSAE": matrices | buffers | {"group_sizes": torch.tensor([D_SAE // 4, D_SAE - D_SAE // 4])},
        "JumpReluAutoEncoder": matrices | {"threshold": w["theta"]},
        "GatedAutoEncoder": {
            "encoder.weight": w["W_enc"].T,
            "decoder.weight": w["W_dec"].T,
            "decoder_bias": w["b_dec"],
            "r_mag": 0.4 * w["b_enc"],
            "gate_bias": w["b_enc"] - 1,
            "mag_bias": w["b_enc"].flip(0),
        },
    }[dict_class]
    config = {
        "trainer": {
            "trainer_class": "Trainer",
            "dict_class": dict_class,
            "activation_dim": D_MODEL,
            "dict_size": D_SAE,
            "k": k,
            "device": "cpu",
            "layer": layer,
            "lm_name": "EleutherAI/pythia-70m-deduped",
            "submodule_name": f"resid_post_layer_{layer}",
        }
        | trainer,
        "buffer": {"d_submodule": D_MODEL, "io": "out", "ctx_len": 128, "device": "cpu"},
    }
    _json(folder / "config.json", config)
    torch.save({key: value.clone() for key, value in state.items()}, folder / "ae.pt")
    return folder


def _json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _safetensors(path: Path, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, path)
