"""What the plans of all flows are made with. Pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tasks.artifacts.manifest import Manifest
from tasks.errors import BadInput
from tasks.spec import InputRef

StudyT = TypeVar("StudyT", bound=BaseModel)


def cut(total: int, pieces: int) -> list[tuple[int, int]]:
    """Half-open ranges that cover ``total`` items in ``pieces`` pieces as equal as can be; no empty ones."""
    pieces = min(pieces, total)
    edges = [total * i // pieces for i in range(pieces + 1)] if pieces else [0]
    return list(itertools.pairwise(edges))


def refs(manifests: Iterable[Manifest]) -> list[InputRef]:
    return [manifest.ref for manifest in manifests]


def as_study(kind: type[StudyT], **parameters: object) -> StudyT:
    """A study as a whole: some settings are wrong only together. Raises: BadInput."""
    try:
        return kind.model_validate(parameters)
    except ValidationError as error:
        raise BadInput.from_validation(error, "study") from error


def last_part(source: str) -> str:
    """What a model or a file is called: the end of its id, path or URL."""
    return source.rstrip("/").replace("embedded:", "").rpartition("/")[2]
