"""How vLLM is set up for the engine: its arguments, and what it reads from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.engines.interface import Capture
from tasks.engines.vllm.model_folder import ModelFolder
from tasks.engines.vllm.requests import KEY
from tasks.errors import BadInput

DEFAULT_BATCH_SIZE = {"cpu": 64, "cuda": 512}
BANK_PATH = "TOMOGRAPH_VLLM_BANK"
"""Environment variable: the file of the engine's bank."""
BLOCK_SIZE = {"cpu": 32, "cuda": 16}
"""Tokens of a block of the key-value cache: prompts are shared by whole blocks. vLLM's CPU kernels want 32."""


@dataclass(frozen=True)
class Settings:
    batch_size: int
    max_model_len: int
    block_size: int
    cache_bytes: int | None
    folder: Path
    dtype: str
    max_batched_tokens: int
    enforce_eager: bool
    gpu_memory_utilization: float
    tensor_parallel: int

    @classmethod
    def of(
        cls,
        model: ModelFolder,
        cuda: bool,
        batch_size: int | None,
        max_model_len: int | None,
        *,
        dtype: str,
        max_batched_tokens: int,
        cache_bytes: int | None,
        **others: Any,
    ) -> Settings:
        """Fill in what is not given."""
        device = "cuda" if cuda else "cpu"
        batch_size = batch_size or DEFAULT_BATCH_SIZE[device]
        length = max_model_len or min(model.max_positions, 4096)
        if cache_bytes is None and not cuda:
            cache_bytes = model.cache_bytes(batch_size, length, BLOCK_SIZE[device], dtype)
        return cls(
            batch_size=batch_size,
            max_model_len=length,
            block_size=BLOCK_SIZE[device],
            cache_bytes=cache_bytes,
            folder=model.folder,
            dtype=dtype,
            max_batched_tokens=max(min(max_batched_tokens, batch_size * length), batch_size),
            **others,
        )

    def arguments(self, bank_digest: str | None, capture: Capture) -> dict[str, Any]:
        """Of vLLM's EngineArgs.

        The bank is named in `additional_config`, which is part of the compile cache's key: by its content, so that
        what was compiled for it is found again. Where it lies, workers read in the environment (`BANK_PATH`).
        """
        ours = {
            "bank": bank_digest,
            "capture": {
                "rows": list(capture.rows),
                "residual_layers": list(capture.residual_layers),
                "positions": list(capture.positions),
            },
        }
        return {
            "model": str(self.folder),
            "dtype": self.dtype,
            "skip_tokenizer_init": True,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.batch_size,
            "max_num_batched_tokens": self.max_batched_tokens,
            "block_size": self.block_size,
            "enable_prefix_caching": True,
            "enforce_eager": self.enforce_eager,
            "kv_cache_memory_bytes": self.cache_bytes,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "tensor_parallel_size": self.tensor_parallel,
            "disable_log_stats": True,
            "hf_overrides": {"head_dtype": "float32"},  # a 16-bit head rounds logits to coarse steps
            "additional_config": {KEY: ours},
        }


def load_internals(v2_runner: bool):
    """The one module that needs vLLM, once the environment says what vLLM reads there."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1" if v2_runner else "0"
    defaults = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1"}
    defaults["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # cores may be shared, and vLLM binds to them all it finds
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    try:
        from tasks.engines.vllm import internals
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise BadInput(
            "engine", "vllm", "vLLM is not installed in this environment", "install it, or use the torch engine"
        ) from error
    return internals
