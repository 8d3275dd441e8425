"""What the engine must know of a model before vLLM loads it. Raises BadInput for a model that it cannot edit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from tasks.engines.vllm.supported import ARCHITECTURES
from tasks.errors import BadInput


@dataclass(frozen=True)
class ModelFolder:
    folder: Path
    config: PretrainedConfig
    end_tokens: tuple[int, ...]
    """Ids that end a text: the generation configuration's, else the model's."""

    @classmethod
    def read(cls, folder: Path) -> ModelFolder:
        config = AutoConfig.from_pretrained(folder)
        found = config.architectures or [None]
        if found[0] not in ARCHITECTURES:
            raise BadInput(
                "model.source",
                found[0],
                "the vLLM engine does not know where this architecture's residual stream is",
                f"use the torch engine, or a model of {', '.join(ARCHITECTURES)}",
            )
        if "longrope" in str(config.rope_parameters):
            raise BadInput(
                "trials.engine",
                "vllm",
                "the model's rotary embedding has a factor for each frequency (longrope), and how vLLM applies them is "
                "not verified",
                "use trials.engine torch",
            )
        has_own = (folder / "generation_config.json").is_file()
        ids = (GenerationConfig.from_pretrained(folder) if has_own else config).eos_token_id
        return cls(folder, config, () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids))

    @property
    def max_positions(self) -> int:
        return self.config.max_position_embeddings

    def cache_bytes(self, requests: int, length: int, block_size: int, dtype: str) -> int:
        """Bytes of a key-value cache for so many requests of so many tokens, within a quarter of the free memory."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token = 2 * config.num_hidden_layers * heads * width * getattr(torch, dtype).itemsize
        blocks = requests * -(-length // block_size) + 1
        return min(blocks * block_size * token, psutil.virtual_memory().available // 4)
