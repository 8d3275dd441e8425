"""Names of the engines, and which models each can run. Light: no tensor library.

Engines agree up to rounding, and a sampled token can hang on the last bit. So the engine is part of a shard's spec,
chosen by name before the spec is written.
"""

from __future__ import annotations

from typing import Literal

from tasks.engines.vllm.supported import ARCHITECTURES
from tasks.errors import BadInput
from tasks.models.spec import ModelInfo

EngineName = Literal["torch", "vllm"]
EngineChoice = Literal["torch", "vllm", "auto"]


def check_model(engine: EngineName, model: ModelInfo) -> None:
    """Raises BadInput for a model that the engine can't run; torch looks at it when it is loaded."""
    # A GGUF file names no class; transformers converts it to the causal language model of its type.
    architecture = model.architecture or f"{model.model_type.capitalize()}ForCausalLM"
    if engine == "vllm" and architecture not in ARCHITECTURES:
        raise BadInput(
            "model.source", architecture, f"the vllm engine runs {', '.join(ARCHITECTURES)}", "use trials.engine torch"
        )
