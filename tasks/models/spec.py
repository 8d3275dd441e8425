"""What a model is called: parameters of every job that reads one. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.places.location import Location

EMBEDDED_SMOLLM2 = "embedded:smollm2-135m-instruct"

Dtype = Literal["bfloat16", "float16", "float32"]


class ModelRef(BaseModel):
    """A causal language model, with an optional LoRA adapter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Location = Field(
        EMBEDDED_SMOLLM2,
        min_length=1,
        title="Model",
        description=(
            "Hugging Face id (meta-llama/Llama-3.1-8B), local folder, URL of a folder (s3://bucket/model), path or "
            "URL of a .gguf file, or embedded:smollm2-135m-instruct"
        ),
    )
    revision: str | None = Field(
        None, description="Branch, tag or commit of a Hugging Face id; its main branch when empty"
    )
    adapter: Location | None = Field(
        None, description="LoRA adapter to merge into the model: Hugging Face id, local folder or URL of a folder"
    )
    dtype: Dtype = Field(
        "float32",
        description="Precision of weights and residual stream: float32 on a CPU, bfloat16 is usual on a GPU",
    )


class ModelInfo(BaseModel):
    """A model's dimensions, from its configuration alone."""

    model_config = ConfigDict(frozen=True)

    n_layers: int
    d_model: int
    vocab_size: int
    max_positions: int | None = None
    """Longest sequence that the model was made for; None where the source does not say."""
    model_type: str
    """As in config.json: "llama", "gemma2" ..."""
    architecture: str | None
    """Class that the checkpoint was saved from; None where the source does not say."""
