"""Gemma Scope (arXiv 2408.05147): `params.npz` with W_enc [d, F], b_enc, W_dec [F, d], b_dec, threshold [F].

f = relu(pre) where pre > threshold, pre = x @ W_enc + b_enc on raw residual vectors. The file names no layer: the
folder does (`layer_20/width_16k/average_l0_71`), below a repository of one site (res, mlp, att).
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks.errors import BadInput
from tasks.sae.loaders.common import Dims, canonical, refuse, take, threshold
from tasks.sae.locate import Files
from tasks.sae.places import FIELD
from tasks.sae.sae import SAE

FILES = Files("params.npz", "params.npz")

_LAYER = re.compile(r"layer_(\d+)")
_OTHER_SITE = re.compile(r"gemma-scope-.*-(att|mlp|transcoders)\b")


def check(folder: Path, layer: int) -> Dims:
    """Read the shapes only. Raises BadInput for another layer or site, as far as the path tells."""
    path = folder / FILES.config
    if match := _OTHER_SITE.search(str(folder)):
        raise refuse(path, f"site {match[1]}", "it is not of the residual stream", "use the repository ending in -res")
    if "embedding" in folder.parts:
        raise refuse(path, "site embedding", "it comes before the first block")
    named = [int(match[1]) for part in folder.parts if (match := _LAYER.fullmatch(part))]
    if named and named[-1] != layer:
        raise BadInput(
            "saes.layers",
            layer,
            f"the folder {folder} is of layer {named[-1]}",
            f"correct the location for layer {layer}, or ask for layer {named[-1]}",
        )
    shapes = {name: array.shape for name, array in _arrays(path).items()}
    if len(shapes.get("W_enc", ())) != 2:
        raise BadInput(FIELD, str(path), f"has no matrix W_enc, but {sorted(shapes)}", "check saes.kind")
    return Dims(*shapes["W_enc"])


def load(folder: Path, layer: int, name: str) -> SAE:
    """Raises BadInput for files that are broken or of another layer."""
    check(folder, layer)
    path = folder / FILES.weights
    tensors: dict[str, Tensor] = {key: torch.from_numpy(array) for key, array in _arrays(path).items()}
    W_enc, b_enc, W_dec, b_dec, theta = take(tensors, ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"), path)
    return canonical(layer, name, W_enc, b_enc, W_dec, b_dec, threshold(theta, b_enc))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays by name; `w_enc` of some releases is called `W_enc`."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return {"W" + key[1:] if key.startswith("w_") else key: data[key] for key in data}
    except (ValueError, zipfile.BadZipFile) as error:
        raise BadInput(FIELD, str(path), f"is not an npz file ({error})", "download it again") from error
