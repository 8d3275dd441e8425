"""Task `patching.identify`: which model and which dictionaries a study is about.

It runs at every start, in a second, and names what later shards depend on outside the store: the model's and the
SAEs' fingerprints. A changed file changes a fingerprint, and so every spec that follows; where none changed, all that
follows is found again. So nothing here may import torch or read a weight.
"""

from __future__ import annotations

from tasks.context import ShardContext
from tasks.errors import BadInput
from tasks.models.describe import describe
from tasks.models.fingerprint import fingerprint
from tasks.models.spec import ModelInfo
from tasks.patching.spec import IdentifyParams
from tasks.sae.locate import fingerprint as sae_fingerprint


def run(ctx: ShardContext) -> None:
    """Json `identity`: `model_fingerprint`, `model_info`, `sae_fingerprints` by layer (none where SAEs are trained)."""
    p: IdentifyParams = ctx.params
    info = describe(p.model)
    check_layers(p.saes.layers, info)
    layers = [] if p.saes.kind == "train" else p.saes.layers
    ctx.json(
        "identity",
        {
            "model_fingerprint": fingerprint(p.model),
            "model_info": info.model_dump(mode="json"),
            "sae_fingerprints": {str(layer): sae_fingerprint(p.saes, layer) for layer in layers},
        },
    )


def check_layers(layers: list[int], info: ModelInfo) -> None:
    wrong = [layer for layer in layers if not 0 <= layer < info.n_layers]
    if wrong:
        raise BadInput(
            "saes.layers", wrong, f"the model has blocks 0 to {info.n_layers - 1}", "name blocks of the model, from 0"
        )
