"""EleutherAI's sparsify (formerly sae): a folder named after its hookpoint with `cfg.json` and `sae.safetensors`.

Tensors: encoder.weight [F, d], encoder.bias [F], W_dec [F, d], b_dec [d]. Semantics (`sparse_coder.py`):
pre = relu((x - b_dec) @ encoder.weight.T + encoder.bias), the k largest of each token kept, x_hat = f @ W_dec + b_dec.
The hookpoint is a module's name, such as `layers.10` (the output of block 10) or `layers.10.mlp`.

SAELens's loader differs: it transposes W_dec, which fits no file that sparsify writes, and centres the input only where
`normalize_decoder` is off.
"""

from __future__ import annotations

from pathlib import Path

from tasks.sae import sites
from tasks.sae.loaders.common import Dims, canonical, refuse, topk
from tasks.sae.loaders.fields import flag, n_features, whole, word
from tasks.sae.loaders.files import read_json, read_safetensors, take
from tasks.sae.locate import LAYOUTS
from tasks.sae.sae import SAE

FILES = LAYOUTS["sparsify"]

_UNSUPPORTED = {
    "transcode": "a transcoder does not reconstruct the vector that it reads",
    "skip_connection": "its reconstruction has a part that is linear in the input",
    "embed_skip": "its reconstruction depends on the embeddings",
    "gram_lookup": "its reconstruction depends on the tokens before",
    "signed": "it keeps negative activations",
    "matching_pursuit": "it chooses its features one after another",
}


def check(folder: Path, layer: int) -> Dims:
    """Read the configuration only. Raises BadInput for what `load` would refuse because of it."""
    path = folder / FILES.config
    config = read_json(path)
    sites.check_layer(folder.name, layer)
    for option, why in _UNSUPPORTED.items():
        if flag(config, option, path, False):
            raise refuse(path, option, why)
    activation = word(config, "activation", path, "topk")
    if activation != "topk":
        raise refuse(path, f"activation {activation!r}", "only topk has a canonical form")
    d_model = whole(config, "d_in", path)
    return Dims(d_model, n_features(config, "num_latents", d_model, path))


def load(folder: Path, layer: int, name: str) -> SAE:
    """Raises BadInput for files that are broken, of another layer, or can't be folded exactly."""
    dims = check(folder, layer)
    path = folder / FILES.config
    weights = folder / FILES.weights
    d, width = dims.d_model, dims.d_sae
    shapes = {"encoder.weight": (width, d), "encoder.bias": (width,), "W_dec": (width, d), "b_dec": (d,)}
    encoder, b_enc, W_dec, b_dec = take(read_safetensors(weights), shapes, weights)
    gate = topk(whole(read_json(path), "k", path), width, path)
    return canonical(layer, name, encoder.T, b_enc, W_dec, b_dec, gate, centred=True)
