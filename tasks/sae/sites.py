"""Names of places in a model, as dictionaries record them, and which layer's residual stream they mean.

Layer L is the residual stream after block L. The same place has several names: after block 8 is
`blocks.8.hook_resid_post` and `blocks.9.hook_resid_pre` in TransformerLens, the output of `model.layers.8` in
transformers. Confusing them by one is the classic mistake, so what a file says is compared with what was asked.
"""

from __future__ import annotations

import re

from tasks.errors import BadInput

_AFTER_BLOCK = (
    re.compile(r"blocks\.(\d{1,6})\.hook_resid_post"),
    re.compile(r"(?:[a-z_]+\.)*(?:layers|h|blocks|block|layer)\.(\d{1,6})(?:\.output)?"),
    re.compile(r"(?:layers|layer)_(\d{1,6})"),
    re.compile(r"resid_post_layer_(\d{1,6})"),
)
_BEFORE_BLOCK = re.compile(r"blocks\.(\d{1,6})\.hook_resid_pre")
_OTHER_SITES = (
    ("hook_resid_mid", "the residual stream between attention and MLP"),
    ("attn", "inside or at the output of attention"),
    ("attention", "inside or at the output of attention"),
    ("hook_z", "inside attention"),
    ("mlp", "inside or at the output of an MLP"),
    ("feedforward", "inside or at the output of an MLP"),
    ("ln", "at the output of a norm"),
    ("norm", "at the output of a norm"),
    ("embed", "at the embeddings, before the first block"),
)


def residual_layer(site: str, field: str = "saes.location") -> int:
    """The layer whose residual stream `site` names.

    Raises:
        BadInput: the name is of another place, or unknown.
    """
    for pattern in _AFTER_BLOCK:
        if match := pattern.fullmatch(site):
            return int(match[1])
    if match := _BEFORE_BLOCK.fullmatch(site):
        if match[1] != "0":
            return int(match[1]) - 1
        site_is = "at the embeddings, before the first block"
    else:
        site_is = next((meaning for part, meaning in _OTHER_SITES if part in site), None)
    problem = f"the dictionary was trained {site_is}" if site_is else "this place in a model is not known"
    raise BadInput(
        field,
        site,
        f"{problem}; edits and readings here are of the residual stream after a block",
        "use the residual-stream dictionaries of this release (called R, res or resid_post)",
    )


def check_layer(site: str, layer: int, field: str = "saes.layers") -> None:
    """Raises BadInput unless `site` names the residual stream after block `layer`."""
    found = residual_layer(site)
    if found != layer:
        raise BadInput(
            field,
            layer,
            f"the dictionary found there was trained at {site}, the residual stream after block {found}",
            f"correct the location for layer {layer}, or ask for layer {found}",
        )
