"""One layer's dictionary from any source, as the canonical SAE."""

from __future__ import annotations

from types import ModuleType

import torch

from tasks.errors import BadInput
from tasks.sae.loaders import dictionary_learning, gemma_scope, llama_scope, saelens, sparsify
from tasks.sae.locate import Located, fingerprint, locate
from tasks.sae.sae import SAE
from tasks.sae.spec import SaeSource

__all__ = ["FORMATS", "check_source", "fingerprint", "load_sae"]

FORMATS: dict[str, ModuleType] = {
    "llama_scope": llama_scope,
    "saelens": saelens,
    "gemma_scope": gemma_scope,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
}


def load_sae(source: SaeSource, layer: int, device: str | torch.device = "cpu", d_model: int | None = None) -> SAE:
    """The dictionary of `layer`, its matrices in `source.dtype`.

    d_model: of the model it is for, if known; a dictionary of another width is refused.

    Raises:
        BadInput: it is not there, is of another layer, place or width, or can't be folded exactly.
        TransientError: the place can't be reached.
    """
    located = locate(source, layer)
    sae = FORMATS[source.kind].load(located.fetch(), layer, _name(source, located))
    _check_width(sae.d_model, d_model, located)
    return sae.to(device, getattr(torch, source.dtype))


def check_source(source: SaeSource, d_model: int | None = None) -> None:
    """Check every layer's dictionary by its configuration, without its weights. Raises like `load_sae`."""
    if source.kind == "train":
        return
    for layer in source.layers:
        located = locate(source, layer)
        dims = FORMATS[source.kind].check(located.fetch_config(), layer)
        _check_width(dims.d_model, d_model, located)


def _name(source: SaeSource, located: Located) -> str:
    root = located.location.removesuffix(located.pattern).rstrip("/")
    return f"{source.kind}:{root}/{located.folder}".rstrip("/")


def _check_width(found: int | None, d_model: int | None, located: Located) -> None:
    if d_model is not None and found not in (None, d_model):
        raise BadInput(
            "saes.location",
            located.location,
            f"these dictionaries are for a residual stream of {found} dimensions and the model's has {d_model}",
            "use dictionaries that were trained on this model",
        )
