"""Files that are not as their format has them: read to their truth, or refused by name with what is wrong."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tasks.errors import BadInput
from tasks.sae.load import check_source, load_sae
from tasks.sae.sae import SAE
from tasks.sae.spec import SaeSource
from tests.sae import checkpoints
from tests.sae.checkpoints import D_MODEL, D_SAE, residuals

LAYER = 8
MAKE: dict[str, Callable[[Path], Path]] = {
    "llama_scope": lambda folder: checkpoints.llama_scope(folder / "L8R", layer=LAYER),
    "saelens": lambda folder: checkpoints.saelens(folder / "sae"),
    "gemma_scope": lambda folder: checkpoints.gemma_scope(folder / "layer_8"),
    "sparsify": lambda folder: checkpoints.sparsify(folder / "layers.8"),
    "dictionary_learning": lambda folder: checkpoints.dictionary_learning(folder / "sae", "JumpReluAutoEncoder"),
}
CONFIGS = {
    "llama_scope": "hyperparams.json",
    "saelens": "cfg.json",
    "sparsify": "cfg.json",
    "dictionary_learning": "config.json",
}
WEIGHTS = {
    "llama_scope": "checkpoints/final.safetensors",
    "saelens": "sae_weights.safetensors",
    "gemma_scope": "params.npz",
    "sparsify": "sae.safetensors",
    "dictionary_learning": "ae.pt",
}
B_DEC = {"llama_scope": "decoder.bias"}
W_ENC = {"llama_scope": "encoder.weight", "sparsify": "encoder.weight"}
W_DEC = {"llama_scope": "decoder.weight"}


def open_sae(kind: str, folder: Path) -> SAE:
    source = SaeSource(kind=kind, location=str(folder), layers=[LAYER])
    check_source(source, D_MODEL)
    return load_sae(source, LAYER, d_model=D_MODEL)


def refused(kind: str, folder: Path, message: str) -> BadInput:
    with pytest.raises(BadInput, match=message) as caught:
        open_sae(kind, folder)
    assert caught.value.remedy
    assert "weights_only" not in str(caught.value)
    assert "allow_pickle" not in str(caught.value)
    return caught.value


def change_tensors(kind: str, folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Any]]) -> None:
    path = folder / WEIGHTS[kind]
    match path.suffix:
        case ".npz":
            with np.load(path) as data:
                tensors = {key: torch.from_numpy(data[key]) for key in data}
            np.savez(path, **{key: value.numpy() for key, value in change(tensors).items()})
        case ".pt":
            torch.save(change(torch.load(path, weights_only=True)), path)
        case _:
            save_file({key: value.contiguous() for key, value in change(load_file(path)).items()}, path)


def change_config(kind: str, folder: Path, **changes: Any) -> None:
    path = folder / CONFIGS[kind]
    config = json.loads(path.read_text())
    inner = config["trainer"] if kind == "dictionary_learning" else config
    for key, value in changes.items():
        inner.pop(key, None)
        if value is not ...:
            inner[key] = value
    path.write_text(json.dumps(config))


def with_value(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.double().contiguous()
    changed.view(-1)[-1] = value
    return changed if abs(value) > 1e100 and np.isfinite(value) else changed.to(tensor.dtype)


@pytest.mark.parametrize("kind", MAKE)
def test_a_vector_stored_as_a_row_or_a_column_is_that_vector(tmp_path: Path, kind: str) -> None:
    folder = MAKE[kind](tmp_path)
    x = residuals(seed=0)
    plain = open_sae(kind, folder)
    for shape in ((1, D_MODEL), (D_MODEL, 1)):
        name = B_DEC.get(kind, "b_dec")
        change_tensors(kind, folder, lambda t, n=name, s=shape: t | {n: t[n].reshape(s)})
        odd = open_sae(kind, folder)
        torch.testing.assert_close(odd.reconstruct(x), plain.reconstruct(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ["saelens", "dictionary_learning", "sparsify"])
def test_any_precision_is_read_exactly(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    folder, other = MAKE[kind](tmp_path / "a"), MAKE[kind](tmp_path / "b")
    change_tensors(kind, folder, lambda t: {key: value.to(dtype) for key, value in t.items()})
    change_tensors(kind, other, lambda t: {key: value.to(dtype).float() for key, value in t.items()})
    x = residuals(seed=0)
    torch.testing.assert_close(open_sae(kind, folder).encode(x), open_sae(kind, other).encode(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "NaN or infinite"),
        (float("inf"), "NaN or infinite"),
        (float("-inf"), "NaN or infinite"),
        (1e300, "too large for float32"),
    ],
)
@pytest.mark.parametrize("kind", MAKE)
def test_values_that_are_no_numbers(tmp_path: Path, kind: str, value: float, message: str) -> None:
    for tensor in (W_ENC.get(kind, "W_enc"), W_DEC.get(kind, "W_dec"), B_DEC.get(kind, "b_dec")):
        folder = MAKE[kind](tmp_path / tensor)
        change_tensors(kind, folder, lambda t, n=tensor: t | {n: with_value(t[n], value)})
        refused(kind, folder, rf"{WEIGHTS[kind]}'.*tensor {tensor} holds.*{message}")


def test_values_that_folding_makes_too_large(tmp_path: Path) -> None:
    folder = MAKE["llama_scope"](tmp_path)
    change_config("llama_scope", folder, dataset_average_activation_norm={"in": 1e-38, "out": 1e38})
    refused("llama_scope", folder, "in residual units is too large for float32")


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {key: t[key] for key in list(t)[:-1]}, "has no (tensor|matrix)"),
        (lambda t: t | {"W_skip": torch.zeros(3)}, "tensor W_skip, which a dictionary of this kind does not have"),
        (lambda t: {key: v.to(torch.int8) for key, v in t.items()}, "int8.* floating-point"),
        (lambda t: {key: v.T.contiguous() if v.ndim == 2 else v for key, v in t.items()}, "shape|reads|residual"),
        (lambda t: {key: v[:-1] for key, v in t.items()}, "shape|reads|residual"),
        (lambda t: {key: v[:0] for key, v in t.items()}, "shape|no matrix"),
        (lambda t: {key: v[0] if v.ndim == 2 else v for key, v in t.items()}, "shape|no matrix"),
    ],
)
def test_tensors_of_another_format(tmp_path: Path, kind: str, change: Callable[[dict], dict], message: str) -> None:
    folder = MAKE[kind](tmp_path)
    change_tensors(kind, folder, change)
    refused(kind, folder, message)


@pytest.mark.parametrize("kind", MAKE)
def test_one_transposed_matrix_names_both_shapes(tmp_path: Path, kind: str) -> None:
    folder, name = MAKE[kind](tmp_path), W_DEC.get(kind, "W_dec")
    change_tensors(kind, folder, lambda t: t | {name: t[name].T.contiguous()})
    refused(kind, folder, rf"tensor {name} has shape \(\d+, \d+\) where .* call for \(\d+, \d+\)")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_configuration_of_another_dictionary(tmp_path: Path, kind: str) -> None:
    width = {"sparsify": "num_latents", "dictionary_learning": "dict_size"}.get(kind, "d_sae")
    folder = MAKE[kind](tmp_path)
    change_config(kind, folder, **{width: D_SAE + 1})
    refused(kind, folder, rf"{WEIGHTS[kind]}'.*{D_SAE + 1}")


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff" * 300, b"{}", b"[]", b"null", pickle.dumps([1], 2), pickle.dumps(Path("x"), 2)]
)
def test_weights_that_are_something_else(tmp_path: Path, kind: str, content: bytes) -> None:
    folder = MAKE[kind](tmp_path)
    (folder / WEIGHTS[kind]).write_bytes(content)
    refused(kind, folder, WEIGHTS[kind])


@pytest.mark.parametrize("kind", MAKE)
def test_truncated_and_flipped_weights(tmp_path: Path, kind: str) -> None:
    """Wherever a file ends, it is refused; whatever byte is flipped, it is read or refused."""
    folder = MAKE[kind](tmp_path)
    path = folder / WEIGHTS[kind]
    whole = path.read_bytes()
    for end in range(1, len(whole), len(whole) // 9):
        path.write_bytes(whole[:end])
        refused(kind, folder, WEIGHTS[kind])
    for at in (*range(0, min(len(whole), 600), 37), *range(len(whole) - 600, len(whole), 41)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(BadInput):
            open_sae(kind, folder)


@pytest.mark.parametrize("state", [[1, 2], torch.ones(3), {"W_enc": 1.0}, {1: torch.ones(2)}, {"W_enc": ["a"]}, None])
def test_pickles_without_tensors_by_name(tmp_path: Path, state: Any) -> None:
    folder = MAKE["dictionary_learning"](tmp_path)
    torch.save(state, folder / "ae.pt")
    refused("dictionary_learning", folder, "ae.pt")


def test_arrays_that_are_not_of_real_numbers(tmp_path: Path) -> None:
    folder = MAKE["gemma_scope"](tmp_path)
    with np.load(folder / "params.npz") as data:
        arrays = dict(data)
    for odd in (np.array([{"a": 1}], dtype=object), np.array(["a"]), np.ones(3, complex)):
        np.savez(folder / "params.npz", **arrays | {"W_enc": odd})
        refused("gemma_scope", folder, "params.npz")


def test_arrays_of_another_byte_order_or_more_bits_are_read(tmp_path: Path) -> None:
    folder = MAKE["gemma_scope"](tmp_path)
    plain = open_sae("gemma_scope", folder)
    with np.load(folder / "params.npz") as data:
        arrays = dict(data)
    for dtype in (">f4", np.longdouble):
        np.savez(folder / "params.npz", **{key: value.astype(dtype) for key, value in arrays.items()})
        torch.testing.assert_close(open_sae("gemma_scope", folder).W_enc, plain.W_enc, rtol=0, atol=0)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe{", b"{", b"[1]", b"null", b"[" * 100_000, b'{"d_in": ' + b"9" * 5000 + b"}"]
)
def test_configurations_that_are_no_object(tmp_path: Path, kind: str, content: bytes) -> None:
    folder = MAKE[kind](tmp_path)
    (folder / CONFIGS[kind]).write_bytes(content)
    refused(kind, folder, CONFIGS[kind])


@pytest.mark.parametrize("odd", [None, "many", [1], {}, True, -1, 0, 1.5, 1e300, float("nan"), 10**400, ...])
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("llama_scope", "d_model"),
        ("llama_scope", "dataset_average_activation_norm"),
        ("saelens", "d_in"),
        ("saelens", "d_sae"),
        ("sparsify", "d_in"),
        ("sparsify", "k"),
    ],
)
def test_a_needed_field_of_another_type(tmp_path: Path, kind: str, key: str, odd: Any) -> None:
    folder = MAKE[kind](tmp_path)
    change_config(kind, folder, **{key: odd})
    refused(kind, folder, rf"{CONFIGS[kind]}'.*has (no )?{key}\b")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama_scope", {"hook_point_in": ...}),
        ("llama_scope", {"hook_point_in": 8}),
        ("llama_scope", {"hook_point_out": None}),
        ("llama_scope", {"dataset_average_activation_norm": 8.0}),
        ("llama_scope", {"dataset_average_activation_norm": {"in": 0.0, "out": 8.0}}),
        ("llama_scope", {"dataset_average_activation_norm": {"in": "8", "out": 8.0}}),
        ("llama_scope", {"dataset_average_activation_norm": {"blocks.9.hook_resid_post": 8.0}}),
        ("llama_scope", {"jump_relu_threshold": None}),
        ("llama_scope", {"jump_relu_threshold": "0.5"}),
        ("llama_scope", {"act_fn": None}),
        ("llama_scope", {"act_fn": "batchtopk"}),
        ("llama_scope", {"use_decoder_bias": "false"}),
        ("llama_scope", {"sparsity_include_decoder_norm": 1}),
        ("llama_scope", {"d_sae": ..., "expansion_factor": ...}),
        ("llama_scope", {"d_sae": ..., "expansion_factor": 1.23}),
        ("llama_scope", {"act_fn": "topk", "jump_relu_threshold": 0, "top_k": D_SAE + 1}),
        ("saelens", {"apply_b_dec_to_input": "no"}),
        ("saelens", {"architecture": ["jumprelu"]}),
        ("saelens", {"architecture": "topk", "k": "6"}),
        ("saelens", {"metadata": "gpt2"}),
        ("saelens", {"metadata": {"hook_name": 8}}),
        ("saelens", {"metadata": {"hook_name": "blocks." + "8" * 5000 + ".hook_resid_post"}}),
        ("saelens", {"activation_fn_kwargs": [1]}),
        ("saelens", {"normalize_activations": 5}),
        ("sparsify", {"signed": "yes"}),
        ("sparsify", {"activation": 3}),
        ("sparsify", {"k": D_SAE + 1}),
        ("sparsify", {"matching_pursuit": True}),
        ("dictionary_learning", {"dict_class": ["AutoEncoder"]}),
        ("dictionary_learning", {"submodule_name": 8}),
        ("dictionary_learning", {"submodule_name": None, "layer": [8]}),
        ("dictionary_learning", {"dict_size": "big"}),
        ("dictionary_learning", {"activation_dim": D_MODEL + 1}),
    ],
)
def test_states_of_a_configuration(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    folder = MAKE[kind](tmp_path)
    change_config(kind, folder, **changes)
    refused(kind, folder, "saes.location")


@pytest.mark.parametrize("trainer", [None, [1], "trainer", {}])
def test_a_trainer_that_is_none(tmp_path: Path, trainer: Any) -> None:
    folder = MAKE["dictionary_learning"](tmp_path)
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": [1]}))
    refused("dictionary_learning", folder, "config.json")


def test_average_norms_by_hook_point(tmp_path: Path) -> None:
    """As later releases of the authors' code write them."""
    folder = MAKE["llama_scope"](tmp_path)
    plain = open_sae("llama_scope", folder)
    change_config("llama_scope", folder, dataset_average_activation_norm={f"blocks.{LAYER}.hook_resid_post": 5.8125})
    torch.testing.assert_close(open_sae("llama_scope", folder).W_enc, plain.W_enc, rtol=0, atol=0)


def test_nulls_of_saelens_mean_its_defaults(tmp_path: Path) -> None:
    folder = checkpoints.saelens_before_6(tmp_path / "sae")
    plain = open_sae("saelens", folder)
    keys = ("activation_fn_kwargs", "architecture", "apply_b_dec_to_input", "metadata", "normalize_activations")
    change_config("saelens", folder, **dict.fromkeys(keys), finetuning_scaling_factor=False)
    torch.testing.assert_close(open_sae("saelens", folder).b_enc, plain.b_enc, rtol=0, atol=0)
