"""Our loaders against SAELens 6.54.12 on the same files, its known differences stated and tested.

`fixtures/make_saelens_fixtures.py` made the files and says how to make them again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tasks.sae.load import load_sae
from tasks.sae.sae import SAE
from tasks.sae.spec import SaeSource
from tests.sae.checkpoints import D_MODEL

FIXTURES = Path(__file__).parent / "fixtures"
SAME = [
    ("saelens", "saelens_standard"),
    ("saelens", "saelens_standard_uncentred"),
    ("saelens", "saelens_jumprelu"),
    ("saelens", "saelens_gated"),
    ("saelens", "saelens_topk"),
    ("saelens", "saelens_topk_rescaled"),
    ("saelens", "saelens_batchtopk_checkpoint"),
    ("saelens", "saelens_batchtopk_inference"),
    ("saelens", "saelens_before_6"),
    ("saelens", "saelens_before_6_topk"),
    ("saelens", "exported"),
    ("gemma_scope", "gemma_scope/layer_8/width_16k/average_l0_5"),
    ("dictionary_learning", "dictionary_learning_AutoEncoder"),
    ("dictionary_learning", "dictionary_learning_AutoEncoderTopK"),
    ("dictionary_learning", "dictionary_learning_BatchTopKSAE"),
    ("dictionary_learning", "dictionary_learning_MatryoshkaBatchTopKSAE"),
]


def load(kind: str, case: str, layer: int = 8) -> SAE:
    return load_sae(SaeSource(kind=kind, location=str(FIXTURES / case), layers=[layer]), layer)


def expected(case: str) -> tuple[Tensor, Tensor, Tensor]:
    """x, and SAELens's f and x_hat."""
    tensors = load_file(FIXTURES / case.split("/")[0] / "expected.safetensors")
    return tensors["x"], tensors["f"], tensors["x_hat"]


@pytest.mark.parametrize(("kind", "case"), SAME)
def test_activations_and_reconstructions_are_the_same(kind: str, case: str) -> None:
    sae, (x, f, x_hat) = load(kind, case), expected(case)
    assert 0.02 < (f > 0).float().mean() < 0.98
    torch.testing.assert_close(sae.encode(x), f, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(sae.reconstruct(x), x_hat, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dict_class", ["JumpReluAutoEncoder", "GatedAutoEncoder"])
def test_saelens_drops_the_decoder_norm_of_these_classes(dict_class: str) -> None:
    """dictionary_learning returns f * |decoder row|, SAELens f; reconstructions are the same."""
    case = f"dictionary_learning_{dict_class}"
    sae, (x, f, x_hat) = load("dictionary_learning", case), expected(case)
    state = torch.load(FIXTURES / case / "ae.pt", weights_only=True)
    decoder = state["W_dec"] if "W_dec" in state else state["decoder.weight"].T
    torch.testing.assert_close(sae.encode(x), f * decoder.norm(dim=1), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(sae.reconstruct(x), x_hat, atol=1e-4, rtol=1e-4)


def test_llama_scope_in_saelens_has_another_unit_and_another_gate() -> None:
    """SAELens: f = s pre where pre > theta. The authors: f = n pre where n pre > theta, n the decoder norm.

    So a value of one is never a value of the other: they differ by s / n where both are active, and each has
    activations that the other has not.
    """
    sae, (x, f, x_hat) = load("llama_scope", "llama_scope", layer=15), expected("llama_scope")
    hyperparams = json.loads((FIXTURES / "llama_scope/hyperparams.json").read_text())
    tensors = load_file(FIXTURES / "llama_scope/checkpoints/final.safetensors")
    s = math.sqrt(D_MODEL) / hyperparams["dataset_average_activation_norm"]["in"]
    n = tensors["decoder.weight"].float().norm(dim=0)
    ours = sae.encode(x)
    both, either = (ours > 0) & (f > 0), (ours > 0) | (f > 0)
    assert 0.01 < 1 - both.sum() / either.sum() < 0.5
    torch.testing.assert_close((ours * s / n)[both], f[both], atol=1e-4, rtol=1e-4)

    pre, theta = sae.pre_activations(x) / n, hyperparams["jump_relu_threshold"]
    torch.testing.assert_close(torch.where(pre > theta, s * pre, 0.0), f, atol=1e-4, rtol=1e-4)
    assert torch.equal(ours > 0, n * pre > theta)
    torch.testing.assert_close(sae.decode(f * n / s), x_hat, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "case", "checkpoint", "error"),
    [
        ("sparsify", "sparsify", "sparsify/layers.8", "size mismatch for W_dec"),
        ("dictionary_learning", "dictionary_learning_AutoEncoderNew", "dictionary_learning_AutoEncoderNew", "b_dec"),
    ],
)
def test_saelens_cannot_read_files_that_we_can(kind: str, case: str, checkpoint: str, error: str) -> None:
    """It transposes sparsify's W_dec and knows no `decoder.bias`; `test_loaders` has the authors' formulas."""
    assert error in json.loads((FIXTURES / case / "expected.json").read_text())["error"]
    assert load(kind, checkpoint).d_model == D_MODEL
