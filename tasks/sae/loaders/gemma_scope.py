"""Gemma Scope (arXiv 2408.05147): `params.npz` with W_enc [d, F], b_enc, W_dec [F, d], b_dec, threshold [F].

f = relu(pre) where pre > threshold, pre = x @ W_enc + b_enc on raw residual vectors. The file names no layer: the
folder does (`layer_20/width_16k/average_l0_71`), below a repository of one site (res, mlp, att).
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from tasks.errors import BadInput
from tasks.sae.loaders.common import Dims, canonical, refuse, threshold
from tasks.sae.loaders.files import matrix_shape, read_npz, take
from tasks.sae.locate import LAYOUTS
from tasks.sae.sae import SAE

FILES = LAYOUTS["gemma_scope"]

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
    return Dims(*matrix_shape(_arrays(path), "W_enc", path))


def load(folder: Path, layer: int, name: str) -> SAE:
    """Raises BadInput for files that are broken or of another layer."""
    dims = check(folder, layer)
    path = folder / FILES.weights
    d, width = dims.d_model, dims.d_sae
    shapes = {"W_enc": (d, width), "b_enc": (width,), "W_dec": (width, d), "b_dec": (d,), "threshold": (width,)}
    W_enc, b_enc, W_dec, b_dec, theta = take(_arrays(path), shapes, path)
    return canonical(layer, name, W_enc, b_enc, W_dec, b_dec, threshold(theta, b_enc))


def _arrays(path: Path) -> dict[str, Tensor]:
    """All arrays by name; `w_enc` of some releases is called `W_enc`."""
    return {"W" + key[1:] if key.startswith("w_") else key: array for key, array in read_npz(path).items()}
