"""From a source and a layer to the one folder that holds the layer's dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import BadInput
from tasks.places.place import Place
from tasks.places.resolve import place_and_pattern
from tasks.sae.spec import SaeKind, SaeSource

FIELD = "saes.location"


@dataclass(frozen=True)
class Layout:
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


LAYOUTS: dict[SaeKind, Layout] = {
    "llama_scope": Layout(
        "hyperparams.json",
        "checkpoints/final.safetensors",
        # Llama3_1-8B-Base-L15R-8x; some are spelled Llama3_1Base-L18TC-8x.
        # Other sites match too, to be refused by name.
        folders=("Llama3_1*-L{layer}R-*x", "Llama3_1*-L{layer}[AMT]*-*x"),
    ),
    "saelens": Layout(
        "cfg.json", "sae_weights.safetensors", folders=("blocks.{layer}.hook_resid_post", "layer_{layer}")
    ),
    "gemma_scope": Layout("params.npz", "params.npz"),
    "sparsify": Layout("cfg.json", "sae.safetensors", folders=("layers.{layer}", "h.{layer}")),
    "dictionary_learning": Layout(
        "config.json", "ae.pt", folders=("*layer_{layer}", "*layer_{layer}/trainer_*", "*layer_{layer}_*")
    ),
}
"""Formats of dictionaries that are read, not made here."""


@dataclass(frozen=True)
class Located:
    """The folder of one layer's dictionary."""

    place: Place
    pattern: str
    """Folder asked for, relative to the place, perhaps with wildcards; "" when only the place was named."""
    folder: str
    layout: Layout
    location: str
    """As the user wrote it, the layer filled in."""

    def fetch_config(self) -> Path:
        return self.place.fetch([self.layout.config], self.folder)

    def fetch(self) -> Path:
        return self.place.fetch(self.layout.all, self.folder)

    def fingerprint(self) -> str:
        return self.place.fingerprint(self.layout.all, self.folder)


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
    layout = LAYOUTS[source.kind]
    location = source.layer_locations.get(layer, source.location or "").replace("{layer}", str(layer))
    place, wanted = place_and_pattern(location, FIELD, source.revision)
    below = [folder.replace("{layer}", str(layer)) for folder in layout.folders]
    candidates = [wanted, *("/".join(filter(None, (wanted, folder))) for folder in below)]
    for pattern in candidates:
        found = _complete(place, pattern, layout.all)
        if len(found) > 1:
            raise BadInput(
                FIELD,
                location,
                f"{len(found)} dictionaries match layer {layer}: {', '.join(found[:8])}",
                "name one: write its folder into the location, or into saes.layer_locations",
            )
        if found:
            return Located(place, wanted, found[0], layout, location)
    tried = ", ".join(pattern or "." for pattern in candidates)
    raise BadInput(
        FIELD,
        location,
        f"no folder for layer {layer} with {' and '.join(layout.all)}; looked for {tried}",
        f"check the location and saes.kind ({source.kind}); {{layer}} in it stands for the layer",
    )


def _complete(place: Place, pattern: str, files: Sequence[str]) -> list[str]:
    """Folders that match the pattern and hold all files."""
    holding = [set(place.folders(pattern, name)) for name in files]
    return sorted(set.intersection(*holding))
