"""What a shard is: its task, parameters, inputs and seed, and the hash of all that decides its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.errors import BadInput

HASH_LENGTH = 32

Inputs = Mapping[str, "InputRef | Sequence[InputRef]"]

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A run's seed, from which every random number derives."""

LARGEST_BATCH = 65_536
"""Sequences in one forward pass."""

TORCH = "torch"
"""The environment that most shards run in: the installed extra `tasks`."""

MODELS = ("tasks.models.load",)
"""`TaskKind.preload` of shards that load a model: torch, transformers and peft."""


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises:
        ValueError: a number is infinite or not a number.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


class InputRef(BaseModel):
    """A finished shard that another one reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard: str
    """Folder of the shard, relative to the store: ``shards/<task>/<hash>``."""
    digest: str
    """``Manifest.digest`` of that shard: what it holds, wherever it lies."""


class TaskSpec(BaseModel):
    """One shard. Two specs with the same hash have the same result, but for how the machine rounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    version: int
    params: dict[str, Any]
    inputs: dict[str, InputRef | list[InputRef]] = {}
    seed: int = 0

    @property
    def hash(self) -> str:
        """SHA-256 (first 32 hex digits) of what decides the result.

        Inputs count by what they hold (their digests), not by where they lie.
        """
        digests = {
            name: ref.digest if isinstance(ref, InputRef) else [one.digest for one in ref]
            for name, ref in self.inputs.items()
        }
        content = {
            "task": self.task,
            "version": self.version,
            "params": self.params,
            "inputs": digests,
            "seed": self.seed,
        }
        return hashlib.sha256(canonical_json(content)).hexdigest()[:HASH_LENGTH]

    @property
    def path(self) -> str:
        """Folder of the shard's outputs, relative to the store."""
        return f"shards/{self.task}/{self.hash}"


@dataclass(frozen=True)
class TaskKind:
    """A kind of shard, declared in a room's ``spec.py``."""

    name: str
    """Such as ``"patching.trials"``."""
    version: int
    """Raise it when the code's results change: finished shards of older versions are not reused."""
    params: type[BaseModel]
    entry: str
    """``"module:function"``, imported only in the process that runs the shard."""
    always_run: bool = False
    """Computed every time although a manifest exists, for cheap checks of the outside world."""
    preload: tuple[str, ...] = ()
    """Modules that take long to import and that many kinds need: a launcher may have them loaded before."""
    environment: Callable[[Any], str] = lambda params: TORCH
    """Name of the environment (set of installed packages) that runs a shard with these parameters.

    What the name means is the launcher's business: an interpreter, an image.
    """

    def spec(self, params: BaseModel | Mapping[str, Any], inputs: Inputs | None = None, seed: int = 0) -> TaskSpec:
        """The shard of this kind with these parameters, all defaults written out.

        Raises:
            BadInput: the parameters don't fit the kind's model.
        """
        given = params.model_dump() if isinstance(params, BaseModel) else dict(params)
        dumped = self.validate(given).model_dump(mode="json")
        try:
            canonical_json(dumped)
        except ValueError as error:
            raise BadInput("params", dumped, str(error), "use finite numbers only") from error
        return TaskSpec(
            task=self.name,
            version=self.version,
            params=dumped,
            inputs={name: ref if isinstance(ref, InputRef) else list(ref) for name, ref in (inputs or {}).items()},
            seed=seed,
        )

    def validate(self, params: Mapping[str, Any]) -> BaseModel:
        """``params`` as the kind's model.

        Raises:
            BadInput: a parameter is missing, unknown or has a value that can't be used.
        """
        try:
            return self.params.model_validate(params, extra="forbid")
        except ValidationError as error:
            raise BadInput.from_validation(error) from error
