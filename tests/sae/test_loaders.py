"""Each loader against its format's own mathematics, written naively in float64 from the authors' code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.sae.load import load_sae
from tasks.sae.spec import SaeSource
from tests.sae import checkpoints
from tests.sae.checkpoints import D_MODEL, residuals, weights

Encoded = tuple[np.ndarray, np.ndarray]
"""Activations [n, F] and reconstructions [n, d] of residuals [n, d]."""


def naive_llama_scope(folder: Path, x: np.ndarray, w: dict[str, np.ndarray]) -> Encoded:
    """One encoder pass on the normalised input, as in training, then everything back to raw units.

    Nothing is folded here: x s -> z = W (x s) + b; the authors' raw activation is z n' / s_in with
    n' = |W_dec column| s_in / s_out; active where it exceeds the threshold.
    """
    config = json.loads((folder / "hyperparams.json").read_text())
    norms = config["dataset_average_activation_norm"]
    s_in, s_out = np.sqrt(D_MODEL) / norms["in"], np.sqrt(D_MODEL) / norms["out"]
    w = {key: torch.from_numpy(value).bfloat16().double().numpy() for key, value in w.items()}
    centre = w["b_dec"] * s_in / s_out if config["apply_decoder_bias_to_pre_encoder"] else 0
    z = (x * s_in - centre) @ w["W_enc"] + w["b_enc"]
    n = np.linalg.norm(w["W_dec"], axis=1) * s_in / s_out
    active = z * n / s_in > config["jump_relu_threshold"]
    f = np.where(active, z * n / s_in, 0)
    return f, (np.where(active, z, 0) @ w["W_dec"] + w["b_dec"]) / s_out


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"dataset_average_activation_norm": {"in": 5.8125, "out": 3.390625}},
        {"apply_decoder_bias_to_pre_encoder": True},
        {"act_fn": "topk"},
        {"jump_relu_threshold": 2.5},
    ],
)
def test_llama_scope(tmp_path: Path, config: dict) -> None:
    folder = checkpoints.llama_scope(tmp_path / "L15R", **config)
    check(folder, "llama_scope", 15, lambda x, w: naive_llama_scope(folder, x, w))


def test_llama_scope_relu_has_no_threshold(tmp_path: Path) -> None:
    folder = checkpoints.llama_scope(tmp_path / "L15R", act_fn="relu")
    loosened = checkpoints.llama_scope(tmp_path / "other", jump_relu_threshold=0.0)
    check(folder, "llama_scope", 15, lambda x, w: naive_llama_scope(loosened, x, w))


def test_llama_scope_topk_without_a_threshold_ranks_by_activation_times_decoder_norm(tmp_path: Path) -> None:
    folder = checkpoints.llama_scope(tmp_path / "L15R", act_fn="topk", jump_relu_threshold=0.0, top_k=4)
    loosened = checkpoints.llama_scope(tmp_path / "other", jump_relu_threshold=0.0)

    def naive(x: np.ndarray, w: dict[str, np.ndarray]) -> Encoded:
        f, _ = naive_llama_scope(loosened, x, w)
        f = np.where(f >= np.sort(f, axis=1)[:, [-4]], f, 0)
        w = {key: torch.from_numpy(value).bfloat16().double().numpy() for key, value in w.items()}
        s_out = np.sqrt(D_MODEL) / 5.8125
        directions = w["W_dec"] / np.linalg.norm(w["W_dec"], axis=1, keepdims=True)
        return f, f @ directions + w["b_dec"] / s_out

    check(folder, "llama_scope", 15, naive)


@pytest.mark.parametrize("centred", [True, False])
def test_saelens_jumprelu(tmp_path: Path, centred: bool) -> None:
    folder = checkpoints.saelens(tmp_path / "sae", apply_b_dec_to_input=centred)

    def naive(x: np.ndarray, w: dict[str, np.ndarray]) -> Encoded:
        pre = (x - w["b_dec"] * centred) @ w["W_enc"] + w["b_enc"]
        f = np.maximum(pre, 0) * (pre > w["theta"])
        return f, f @ w["W_dec"] + w["b_dec"]

    check(folder, "saelens", 8, naive)


def test_saelens_before_6(tmp_path: Path) -> None:
    folder = checkpoints.saelens_before_6(tmp_path / "sae")
    check(folder, "saelens", 8, naive_relu)


def test_gemma_scope(tmp_path: Path) -> None:
    folder = checkpoints.gemma_scope(tmp_path / "layer_8/width_16k/average_l0_5")

    def naive(x: np.ndarray, w: dict[str, np.ndarray]) -> Encoded:
        pre = x @ w["W_enc"] + w["b_enc"]
        f = (pre > w["theta"]) * np.maximum(pre, 0)
        return f, f @ w["W_dec"] + w["b_dec"]

    check(folder, "gemma_scope", 8, naive)


@pytest.mark.parametrize("normalize_decoder", [True, False])
def test_sparsify(tmp_path: Path, normalize_decoder: bool) -> None:
    folder = checkpoints.sparsify(tmp_path / "layers.8", k=6, normalize_decoder=normalize_decoder)
    check(folder, "sparsify", 8, naive_topk)


def test_dictionary_learning_auto_encoder(tmp_path: Path) -> None:
    folder = checkpoints.dictionary_learning(tmp_path / "sae", "AutoEncoder")
    check(folder, "dictionary_learning", 8, naive_relu)


def test_dictionary_learning_auto_encoder_new(tmp_path: Path) -> None:
    folder = checkpoints.dictionary_learning(tmp_path / "sae", "AutoEncoderNew")

    def naive(x: np.ndarray, w: dict[str, np.ndarray]) -> Encoded:
        f = np.maximum(x @ w["W_enc"] + w["b_enc"], 0)
        return f, f @ w["W_dec"] + w["b_dec"]

    check(folder, "dictionary_learning", 8, naive)


def test_dictionary_learning_topk_ignores_the_stored_threshold(tmp_path: Path) -> None:
    folder = checkpoints.dictionary_learning(tmp_path / "sae", "AutoEncoderTopK", k=6)
    check(folder, "dictionary_learning", 8, naive_topk)


@pytest.mark.parametrize("dict_class", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_dictionary_learning_batch_topk_uses_the_stored_threshold(tmp_path: Path, dict_class: str) -> None:
    folder = checkpoints.dictionary_learning(tmp_path / "sae", dict_class)

    def naive(x: np.ndarray, w: dict[str, np.ndarray]) -> Encoded:
        positive = np.maximum((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
        f = positive * (positive > 1.25)
        return f, f @ w["W_dec"] + w["b_dec"]

    check(folder, "dictionary_learning", 8, naive)


def test_dictionary_learning_jump_relu(tmp_path: Path) -> None:
    folder = checkpoints.dictionary_learning(tmp_path / "sae", "JumpReluAutoEncoder")

    def naive(x: np.ndarray, w: dict[str, np.ndarray]) -> Encoded:
        norms = np.linalg.norm(w["W_dec"], axis=1)
        pre = x @ w["W_enc"] + w["b_enc"]
        f = np.maximum(pre * (pre > w["theta"]), 0) * norms
        return f, (f / norms) @ w["W_dec"] + w["b_dec"]

    check(folder, "dictionary_learning", 8, naive)


def test_dictionary_learning_gated(tmp_path: Path) -> None:
    folder = checkpoints.dictionary_learning(tmp_path / "sae", "GatedAutoEncoder")

    def naive(x: np.ndarray, w: dict[str, np.ndarray]) -> Encoded:
        norms = np.linalg.norm(w["W_dec"], axis=1)
        encoded = (x - w["b_dec"]) @ w["W_enc"]
        gate = encoded + (w["b_enc"] - 1) > 0
        magnitude = np.exp(0.4 * w["b_enc"]) * encoded + w["b_enc"][::-1]
        f = gate * np.maximum(magnitude, 0) * norms
        return f, (f / norms) @ w["W_dec"] + w["b_dec"]

    check(folder, "dictionary_learning", 8, naive)


def naive_relu(x: np.ndarray, w: dict[str, np.ndarray]) -> Encoded:
    f = np.maximum((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
    return f, f @ w["W_dec"] + w["b_dec"]


def naive_topk(x: np.ndarray, w: dict[str, np.ndarray]) -> Encoded:
    positive = np.maximum((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
    f = np.zeros_like(positive)
    for token, values in enumerate(positive):
        for j in np.argsort(-values)[:6]:
            f[token, j] = values[j]
    return f, f @ w["W_dec"] + w["b_dec"]


def check(folder: Path, kind: str, layer: int, naive: Callable[[np.ndarray, dict[str, np.ndarray]], Encoded]) -> None:
    """Loaded activations and reconstructions equal the naive ones of the same random weights."""
    sae = load_sae(SaeSource(kind=kind, location=str(folder), layers=[layer]), layer, d_model=D_MODEL)
    x = residuals(seed=0, n=200)
    f, x_hat = naive(x.double().numpy(), {key: value.double().numpy() for key, value in weights(seed=0).items()})
    assert 0.02 < (f > 0).mean() < 0.98, "a gate that is always or never open tests nothing"
    np.testing.assert_allclose(sae.encode(x).numpy(), f, atol=2e-4)
    np.testing.assert_allclose(sae.reconstruct(x).numpy(), x_hat, atol=1e-3)
    assert sae.layer == layer
    assert sae.convention == "raw_residual"
