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

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.errors import BadInput
from tasks.sae import sites
from tasks.sae.loaders.common import Dims, canonical, decoder_norms, fold_gated, refuse, relu, threshold, topk
from tasks.sae.loaders.fields import Config, need, section, whole, word
from tasks.sae.loaders.files import matrix_shape, read_json, read_pickle, take
from tasks.sae.locate import FIELD, LAYOUTS
from tasks.sae.sae import SAE

FILES = LAYOUTS["dictionary_learning"]

OF_TRAINING = ("k", "threshold", "group_sizes")
"""What state dicts hold beside the dictionary itself."""

State = dict[str, Any]


def check(folder: Path, layer: int) -> Dims:
    """Read the configuration only. Raises BadInput for what `load` would refuse because of it."""
    path = folder / FILES.config
    config = read_json(path)
    trainer = section(config, "trainer", path)
    sites.check_layer(_site(config, trainer, path), layer)
    dict_class = word(trainer, "dict_class", path)
    if dict_class not in _LOADERS:
        raise refuse(path, f"dict_class {dict_class!r}", f"has no canonical form; known are {', '.join(_LOADERS)}")
    d_model, d_sae = (whole(trainer, key, path) if key in trainer else None for key in ("activation_dim", "dict_size"))
    return Dims(d_model, d_sae)


def load(folder: Path, layer: int, name: str) -> SAE:
    """Raises BadInput for files that are broken, of another layer, or can't be folded exactly."""
    said = check(folder, layer)
    config, path = folder / FILES.config, folder / FILES.weights
    trainer = section(read_json(config), "trainer", config)
    state = read_pickle(path)
    if "encoder.weight" in state:
        d_sae, d_model = matrix_shape(state, "encoder.weight", path)
    else:
        d_model, d_sae = matrix_shape(state, "W_enc", path)
    if (said.d_model or d_model, said.d_sae or d_sae) != (d_model, d_sae):
        problem = f"reads {d_model} dimensions into {d_sae} features, and its config.json says {said}"
        raise BadInput(FIELD, str(path), problem, "take configuration and weights of one dictionary")
    return _LOADERS[trainer["dict_class"]](state, Dims(d_model, d_sae), trainer, layer, name, path)


def _site(config: Config, trainer: Config, path: Path) -> str:
    """The module whose output was read, as a name that `sites` knows."""
    buffer = section(config, "buffer", path) if config.get("buffer") is not None else {}
    if (io := buffer.get("io", "out")) != "out":
        raise refuse(path, f"buffer.io = {io!r}", "it reads the input of a module, here outputs of blocks are read")
    if trainer.get("submodule_name"):
        return word(trainer, "submodule_name", path)
    return f"layers.{need(trainer, 'layer', path)}"


def _linear(state: State, dims: Dims, path: Path, of_features: tuple[str, ...], of_stream: str) -> list[Tensor]:
    """W_enc [d, F] and W_dec [F, d] of two linear layers, the tensors [F] of these names and the bias [d]."""
    d, width = dims.d_model, dims.d_sae
    shapes = {"encoder.weight": (width, d), "decoder.weight": (d, width)}
    shapes |= dict.fromkeys(of_features, (width,)) | {of_stream: (d,)}
    encoder, decoder, *biases = take(state, shapes, path, OF_TRAINING)
    return [encoder.T, decoder.T, *biases]


def _matrices(state: State, dims: Dims, path: Path) -> list[Tensor]:
    """W_enc [d, F], W_dec [F, d], b_enc [F], b_dec [d]"""
    d, width = dims.d_model, dims.d_sae
    shapes = {"W_enc": (d, width), "W_dec": (width, d), "b_enc": (width,), "b_dec": (d,)}
    return take(state, shapes, path, OF_TRAINING)


def _auto_encoder(state: State, dims: Dims, trainer: Config, layer: int, name: str, path: Path) -> SAE:
    W_enc, W_dec, b_enc, b_dec = _linear(state, dims, path, ("encoder.bias",), "bias")
    return canonical(layer, name, W_enc, b_enc, W_dec, b_dec, relu(b_enc), centred=True)


def _auto_encoder_new(state: State, dims: Dims, trainer: Config, layer: int, name: str, path: Path) -> SAE:
    W_enc, W_dec, b_enc, b_dec = _linear(state, dims, path, ("encoder.bias",), "decoder.bias")
    return canonical(layer, name, W_enc, b_enc, W_dec, b_dec, relu(b_enc))


def _top_k(state: State, dims: Dims, trainer: Config, layer: int, name: str, path: Path) -> SAE:
    W_enc, W_dec, b_enc, b_dec = _linear(state, dims, path, ("encoder.bias",), "b_dec")
    stored = state.get("k", trainer.get("k"))
    single = isinstance(stored, torch.Tensor) and stored.numel() == 1
    k = whole({"k": stored.item() if single else stored}, "k", path)
    if trainer.get("k", k) != k:
        raise BadInput(FIELD, str(path), f"has k = {k} and its config.json k = {trainer['k']}", "download both again")
    return canonical(layer, name, W_enc, b_enc, W_dec, b_dec, topk(k, dims.d_sae, path), centred=True)


def _batch_top_k(state: State, dims: Dims, trainer: Config, layer: int, name: str, path: Path) -> SAE:
    if "W_enc" in state:
        W_enc, W_dec, b_enc, b_dec = _matrices(state, dims, path)
    else:
        W_enc, W_dec, b_enc, b_dec = _linear(state, dims, path, ("encoder.bias",), "b_dec")
    theta = _threshold(state, (), path)
    if theta < 0:
        raise refuse(
            path,
            f"threshold = {float(theta)}",
            "the training never estimated it (threshold_start_step was not reached), so no gate is known",
        )
    return canonical(layer, name, W_enc, b_enc, W_dec, b_dec, threshold(theta, b_enc), centred=True)


def _jump_relu(state: State, dims: Dims, trainer: Config, layer: int, name: str, path: Path) -> SAE:
    W_enc, W_dec, b_enc, b_dec = _matrices(state, dims, path)
    gate = threshold(_threshold(state, (dims.d_sae,), path) * decoder_norms(W_dec), b_enc)
    return canonical(layer, name, W_enc, b_enc, W_dec, b_dec, gate, unit_decoder=True)


def _gated(state: State, dims: Dims, trainer: Config, layer: int, name: str, path: Path) -> SAE:
    of_features = ("r_mag", "gate_bias", "mag_bias")
    W_enc, W_dec, r_mag, b_gate, b_mag, b_dec = _linear(state, dims, path, of_features, "decoder_bias")
    W_enc, b_enc, theta = fold_gated(W_enc, r_mag, b_gate, b_mag)
    gate = threshold(theta * decoder_norms(W_dec), b_enc)
    return canonical(layer, name, W_enc, b_enc, W_dec, b_dec, gate, centred=True, unit_decoder=True)


def _threshold(state: State, shape: tuple[int, ...], path: Path) -> Tensor:
    return take(state, {"threshold": shape}, path, unused=state)[0]


_LOADERS = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _batch_top_k,
    "JumpReluAutoEncoder": _jump_relu,
    "GatedAutoEncoder": _gated,
}
