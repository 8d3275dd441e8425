"""What has no exact canonical form, or is not what was asked for, is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import BadInput
from tasks.sae.load import check_source, load_sae
from tasks.sae.sites import residual_layer
from tasks.sae.spec import SaeSource
from tests.sae import checkpoints
from tests.sae.checkpoints import D_MODEL

LEARNED = checkpoints.dictionary_learning


def refused(kind: str, folder: Path, layer: int, message: str) -> None:
    """Both the check of the configuration and the loading refuse it, with this message."""
    source = SaeSource(kind=kind, location=str(folder), layers=[layer])
    for attempt in (lambda: check_source(source), lambda: load_sae(source, layer)):
        with pytest.raises(BadInput, match=message):
            attempt()


@pytest.mark.parametrize(
    ("kind", "write", "layer"),
    [
        ("llama_scope", lambda folder: checkpoints.llama_scope(folder / "L15R", layer=15), 16),
        ("llama_scope", lambda folder: checkpoints.llama_scope(folder / "L15R", layer=15), 14),
        ("saelens", lambda folder: checkpoints.saelens(folder / "sae", layer=8), 9),
        ("saelens", lambda folder: checkpoints.saelens_before_6(folder / "sae", layer=8), 7),
        ("gemma_scope", lambda folder: checkpoints.gemma_scope(folder / "layer_8/width_16k"), 9),
        ("sparsify", lambda folder: checkpoints.sparsify(folder / "layers.8"), 9),
        ("dictionary_learning", lambda folder: LEARNED(folder / "sae", "BatchTopKSAE", layer=8), 9),
    ],
)
def test_another_layer(tmp_path: Path, kind: str, write: Callable[[Path], Path], layer: int) -> None:
    refused(kind, write(tmp_path), layer, "saes.layers")


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("hook_attn_out", "attention"),
        ("hook_mlp_out", "output of an MLP"),
        ("ln2.hook_normalized", "output of a norm"),
        ("hook_resid_mid", "between attention and MLP"),
    ],
)
def test_other_sites_of_llama_scope(tmp_path: Path, site: str, message: str) -> None:
    refused("llama_scope", checkpoints.llama_scope(tmp_path / "sae", site=site), 15, message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "transcoder"),
        ({"norm_activation": "token-wise"}, "factor of each token"),
        ({"norm_activation": "batch-wise"}, "factor of each token"),
        ({"use_glu_encoder": True}, "gated linear encoder"),
        ({"jump_relu_threshold": -0.1}, "negative activations"),
        ({"act_fn": "gelu"}, "gelu"),
    ],
)
def test_llama_scope_configurations(tmp_path: Path, config: dict, message: str) -> None:
    refused("llama_scope", checkpoints.llama_scope(tmp_path / "sae", **config), 15, message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"normalize_activations": "layer_norm"}, "factor of each token"),
        ({"normalize_activations": "constant_norm_rescale"}, "factor of each token"),
        ({"normalize_activations": "expected_average_only_in"}, "fold_activation_norm_scaling_factor"),
        ({"architecture": "temporal"}, "temporal"),
        ({"architecture": "jumprelu_transcoder"}, "transcoder"),
        ({"activation_fn": "tanh-relu"}, "tanh-relu"),
        ({"hook_head_index": 3}, "one attention head"),
        ({"metadata": {"hook_name": "blocks.8.attn.hook_z"}}, "attention"),
        ({"metadata": {"hook_name": "blocks.0.hook_resid_pre"}}, "before the first block"),
        ({"metadata": {"hook_name": "somewhere"}}, "not known"),
        ({"metadata": {}}, "has no hook_name"),
        (
            {
                "metadata": {
                    "hook_name": "blocks.8.hook_resid_post",
                    "model_from_pretrained_kwargs": {"center_writing_weights": True},
                }
            },
            "mean over dimensions",
        ),
    ],
)
def test_saelens_configurations(tmp_path: Path, config: dict, message: str) -> None:
    refused("saelens", checkpoints.saelens(tmp_path / "sae", **config), 8, message)


def test_saelens_fine_tuned_scaling(tmp_path: Path) -> None:
    folder = checkpoints.saelens_before_6(tmp_path / "sae")
    path = folder / "sae_weights.safetensors"
    save_file(load_file(path) | {"scaling_factor": torch.full((checkpoints.D_SAE,), 1.5)}, path)
    with pytest.raises(BadInput, match="scaling_factor"):
        load_sae(SaeSource(kind="saelens", location=str(folder), layers=[8]), 8)


@pytest.mark.parametrize("folder", ["google/gemma-scope-2b-pt-mlp/layer_8/x", "embedding/width_4k/x"])
def test_other_sites_of_gemma_scope(tmp_path: Path, folder: str) -> None:
    refused("gemma_scope", checkpoints.gemma_scope(tmp_path / folder), 8, "site")


@pytest.mark.parametrize(
    "config", [{"transcode": True}, {"skip_connection": True}, {"signed": True}, {"activation": "groupmax"}]
)
def test_sparsify_configurations(tmp_path: Path, config: dict) -> None:
    refused("sparsify", checkpoints.sparsify(tmp_path / "layers.8", **config), 8, next(iter(config)))


def test_sparsify_mlp_hookpoint(tmp_path: Path) -> None:
    refused("sparsify", checkpoints.sparsify(tmp_path / "layers.8.mlp"), 8, "output of an MLP")


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("trainer", {"submodule_name": "mlp_layer_8"}, "output of an MLP"),
        ("trainer", {"dict_class": "CrossCoder"}, "CrossCoder"),
        ("buffer", {"io": "in"}, "input of a module"),
    ],
)
def test_dictionary_learning_configurations(tmp_path: Path, section: str, change: dict, message: str) -> None:
    folder = LEARNED(tmp_path / "sae", "AutoEncoder")
    config = json.loads((folder / "config.json").read_text())
    config[section] |= change
    (folder / "config.json").write_text(json.dumps(config))
    refused("dictionary_learning", folder, 8, message)


def test_dictionary_learning_threshold_that_was_never_estimated(tmp_path: Path) -> None:
    folder = LEARNED(tmp_path / "sae", "BatchTopKSAE")
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(state | {"threshold": torch.tensor(-1.0)}, folder / "ae.pt")
    with pytest.raises(BadInput, match="never estimated"):
        load_sae(SaeSource(kind="dictionary_learning", location=str(folder), layers=[8]), 8)


class _Payload:
    def __reduce__(self):
        return (Path.touch, (Path("pickle-ran"),))


def test_dictionary_learning_pickles_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = LEARNED(tmp_path / "sae", "AutoEncoder")
    torch.save({"encoder.weight": _Payload()}, folder / "ae.pt")
    with pytest.raises(BadInput, match="not a state dict"):
        load_sae(SaeSource(kind="dictionary_learning", location=str(folder), layers=[8]), 8)
    assert not (tmp_path / "pickle-ran").exists()


def test_another_width(tmp_path: Path) -> None:
    source = SaeSource(kind="saelens", location=str(checkpoints.saelens(tmp_path / "sae")), layers=[8])
    for attempt in (lambda: check_source(source, 576), lambda: load_sae(source, 8, d_model=576)):
        with pytest.raises(BadInput, match=f"{D_MODEL} dimensions and the model's has 576"):
            attempt()


def test_broken_files(tmp_path: Path) -> None:
    folder = checkpoints.saelens(tmp_path / "sae")
    source = SaeSource(kind="saelens", location=str(folder), layers=[8])
    (folder / "sae_weights.safetensors").write_bytes(b"not this")
    with pytest.raises(BadInput, match="not a safetensors file"):
        load_sae(source, 8)
    save_file({"W_enc": torch.zeros(2, 3)}, folder / "sae_weights.safetensors")
    with pytest.raises(BadInput, match="has no tensor"):
        load_sae(source, 8)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(BadInput, match="not JSON"):
        check_source(source)


@pytest.mark.parametrize(
    ("site", "layer"),
    [
        ("blocks.8.hook_resid_post", 8),
        ("blocks.9.hook_resid_pre", 8),
        ("layers.10", 10),
        ("model.layers.10", 10),
        ("model.layers.10.output", 10),
        ("transformer.h.3", 3),
        ("gpt_neox.layers.5", 5),
        ("h.0", 0),
        ("resid_post_layer_12", 12),
    ],
)
def test_names_of_the_residual_stream(site: str, layer: int) -> None:
    assert residual_layer(site) == layer
