"""From a source and a layer to the one folder that holds the layer's dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import BadInput
from tasks.sae.places import FIELD, Place, parse
from tasks.sae.spec import SaeKind, SaeSource


@dataclass(frozen=True)
class Files:
    """How a format lays out one dictionary in a folder, and the folder in a collection of many."""

    config: str
    """Small file that says what the dictionary is; the first to be fetched."""
    weights: str
    """The same file where a format has only one."""
    folders: tuple[str, ...] = ()
    """Where a layer's folder may lie below the location, {layer} filled in; after the location itself."""

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.config, self.weights)))


LAYOUTS: dict[SaeKind, Files] = {
    "llama_scope": Files(
        "hyperparams.json",
        "checkpoints/final.safetensors",
        # Llama3_1-8B-Base-L15R-8x; some are spelled Llama3_1Base-L18TC-8x.
        # Other sites match too, to be refused by name.
        folders=("Llama3_1*-L{layer}R-*x", "Llama3_1*-L{layer}[AMT]*-*x"),
    ),
    "saelens": Files(
        "cfg.json", "sae_weights.safetensors", folders=("blocks.{layer}.hook_resid_post", "layer_{layer}")
    ),
    "gemma_scope": Files("params.npz", "params.npz"),
    "sparsify": Files("cfg.json", "sae.safetensors", folders=("layers.{layer}", "h.{layer}")),
    "dictionary_learning": Files(
        "config.json", "ae.pt", folders=("*layer_{layer}", "*layer_{layer}/trainer_*", "*layer_{layer}_*")
    ),
}
"""Formats of dictionaries that are read, not made here."""


@dataclass(frozen=True)
class Located:
    """The folder of one layer's dictionary."""

    place: Place
    folder: str
    files: Files
    location: str
    """As the user wrote it, the layer filled in."""

    def fetch_config(self) -> Path:
        return self.place.fetch(self.folder, [self.files.config])

    def fetch(self) -> Path:
        return self.place.fetch(self.folder, self.files.all)

    def fingerprint(self) -> str:
        return self.place.fingerprint(self.folder, self.files.all)


def fingerprint(source: SaeSource, layer: int) -> str:
    """Changes iff the files of this layer's dictionary do (in a Hugging Face repository: iff its commit does)."""
    return locate(source, layer).fingerprint()


def locate(source: SaeSource, layer: int) -> Located:
    """The layer's folder: the location itself, or one below it where its format usually keeps a layer.

    Raises:
        BadInput: there is none, or more than one.
        TransientError: the place can't be reached.
    """
    if source.kind == "train":
        raise ValueError("a dictionary that is trained here comes from its shard: use tasks.sae.run.load_trained")
    files = LAYOUTS[source.kind]
    location = source.layer_locations.get(layer, source.location or "").replace("{layer}", str(layer))
    place = parse(location, source.revision)
    below = [folder.replace("{layer}", str(layer)) for folder in files.folders]
    candidates = [place.pattern, *("/".join(filter(None, (place.pattern, folder))) for folder in below)]
    for pattern in candidates:
        found = _complete(place, pattern, files.all)
        if len(found) > 1:
            raise BadInput(
                FIELD,
                location,
                f"{len(found)} dictionaries match layer {layer}: {', '.join(found[:8])}",
                "name one: write its folder into the location, or into saes.layer_locations",
            )
        if found:
            return Located(place, found[0], files, location)
    tried = ", ".join(pattern or "." for pattern in candidates)
    raise BadInput(
        FIELD,
        location,
        f"no folder for layer {layer} with {' and '.join(files.all)}; looked for {tried}",
        f"check the location and saes.kind ({source.kind}); {{layer}} in it stands for the layer",
    )


def _complete(place: Place, pattern: str, files: Sequence[str]) -> list[str]:
    """Folders that match the pattern and hold all files."""
    holding = [set(place.folders(pattern, name)) for name in files]
    return sorted(set.intersection(*holding))
