"""dictionary_learning (Marks, Karvonen, Mueller): `ae.pt` and `config.json` with `trainer.dict_class`.

Activations are those that each class returns from `encode`, with its inference gate:

| class | input | gate | activations |
|---|---|---|---|
| AutoEncoder | x - bias | ReLU | as they are |
| AutoEncoderNew | x | ReLU | as they are |
| AutoEncoderTopK | x - b_dec | k largest per token (the stored threshold is not used) | as they are |
| BatchTopKSAE, MatryoshkaBatchTopKSAE | x - b_dec | stored threshold, one for all | as they are |
| JumpReluAutoEncoder | x | stored threshold per feature, before the norm | times decoder norm |
| GatedAutoEncoder | x - decoder_bias | gate path | times decoder norm |
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.errors import BadInput
from tasks.sae import sites
from tasks.sae.loaders.common import (
    Dims,
    canonical,
    decoder_norms,
    fold_gated,
    need,
    read_json,
    refuse,
    relu,
    take,
    threshold,
    topk,
)
from tasks.sae.locate import Files
from tasks.sae.places import FIELD
from tasks.sae.sae import SAE

FILES = Files("config.json", "ae.pt", folders=("*layer_{layer}", "*layer_{layer}/trainer_*", "*layer_{layer}_*"))

BATCH_TOPK = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")


def check(folder: Path, layer: int) -> Dims:
    """Read the configuration only. Raises BadInput for what `load` would refuse because of it."""
    path = folder / FILES.config
    config = read_json(path)
    trainer = _trainer(config, path)
    sites.check_layer(_site(config, trainer, path), layer)
    dict_class = need(trainer, "dict_class", path)
    if dict_class not in _LOADERS:
        raise refuse(path, f"dict_class {dict_class!r}", f"has no canonical form; known are {', '.join(_LOADERS)}")
    return Dims(trainer.get("activation_dim"), trainer.get("dict_size"))


def load(folder: Path, layer: int, name: str) -> SAE:
    """Raises BadInput for files that are broken, of another layer, or can't be folded exactly.

    The pickle is read with `weights_only=True`: it can hold tensors and nothing that runs.
    """
    check(folder, layer)
    path = folder / FILES.weights
    trainer = _trainer(read_json(folder / FILES.config), folder / FILES.config)
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise BadInput(FIELD, str(path), f"is not a state dict of tensors ({error})", "download it again") from error
    return _LOADERS[trainer["dict_class"]](state, trainer, layer, name, path)


def _trainer(config: dict[str, Any], path: Path) -> dict[str, Any]:
    return need(config, "trainer", path)


def _site(config: dict[str, Any], trainer: dict[str, Any], path: Path) -> str:
    """The module whose output was read, as a name that `sites` knows."""
    if (io := (config.get("buffer") or {}).get("io", "out")) != "out":
        raise refuse(path, f"buffer.io = {io!r}", "it reads the input of a module, here outputs of blocks are read")
    return trainer.get("submodule_name") or f"layers.{need(trainer, 'layer', path)}"


def _auto_encoder(state: dict[str, Tensor], trainer: dict[str, Any], layer: int, name: str, path: Path) -> SAE:
    encoder, b_enc, decoder, b_dec = take(state, ("encoder.weight", "encoder.bias", "decoder.weight", "bias"), path)
    return canonical(layer, name, encoder.T, b_enc, decoder.T, b_dec, relu(b_enc), centred=True)


def _auto_encoder_new(state: dict[str, Tensor], trainer: dict[str, Any], layer: int, name: str, path: Path) -> SAE:
    names = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    encoder, b_enc, decoder, b_dec = take(state, names, path)
    return canonical(layer, name, encoder.T, b_enc, decoder.T, b_dec, relu(b_enc))


def _top_k(state: dict[str, Tensor], trainer: dict[str, Any], layer: int, name: str, path: Path) -> SAE:
    encoder, b_enc, decoder, b_dec = take(state, ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec"), path)
    k = int(state["k"]) if "k" in state else trainer.get("k")
    if trainer.get("k", k) != k:
        raise BadInput(FIELD, str(path), f"has k = {k} and its config.json k = {trainer['k']}", "download both again")
    gate = topk(k, encoder.shape[0], path)
    return canonical(layer, name, encoder.T, b_enc, decoder.T, b_dec, gate, centred=True)


def _batch_top_k(state: dict[str, Tensor], trainer: dict[str, Any], layer: int, name: str, path: Path) -> SAE:
    if "W_enc" in state:
        W_enc, b_enc, W_dec, b_dec = take(state, ("W_enc", "b_enc", "W_dec", "b_dec"), path)
    else:
        names = ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec")
        encoder, b_enc, decoder, b_dec = take(state, names, path)
        W_enc, W_dec = encoder.T, decoder.T
    (theta,) = take(state, ["threshold"], path)
    if theta < 0:
        raise refuse(
            path,
            f"threshold = {float(theta)}",
            "the training never estimated it (threshold_start_step was not reached), so no gate is known",
        )
    return canonical(layer, name, W_enc, b_enc, W_dec, b_dec, threshold(theta, b_enc), centred=True)


def _jump_relu(state: dict[str, Tensor], trainer: dict[str, Any], layer: int, name: str, path: Path) -> SAE:
    W_enc, b_enc, W_dec, b_dec, theta = take(state, ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"), path)
    gate = threshold(theta * decoder_norms(W_dec), b_enc)
    return canonical(layer, name, W_enc, b_enc, W_dec, b_dec, gate, unit_decoder=True)


def _gated(state: dict[str, Tensor], trainer: dict[str, Any], layer: int, name: str, path: Path) -> SAE:
    names = ("encoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder.weight", "decoder_bias")
    encoder, r_mag, b_gate, b_mag, decoder, b_dec = take(state, names, path)
    W_enc, b_enc, theta = fold_gated(encoder.T, r_mag, b_gate, b_mag)
    gate = threshold(theta * decoder_norms(decoder.T), b_enc)
    return canonical(layer, name, W_enc, b_enc, decoder.T, b_dec, gate, centred=True, unit_decoder=True)


_LOADERS = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _batch_top_k,
    "JumpReluAutoEncoder": _jump_relu,
    "GatedAutoEncoder": _gated,
}
