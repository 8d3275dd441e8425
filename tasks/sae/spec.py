"""Where sparse autoencoders come from, and the task that trains small ones. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.models.spec import ModelRef
from tasks.places.location import Location
from tasks.spec import MODELS, TaskKind

SaeKind = Literal["train", "llama_scope", "saelens", "gemma_scope", "sparsify", "dictionary_learning"]

DEFAULT_LAYERS = (25, 26)
"""Of the embedded SmolLM2-135M, which has blocks 0 to 29: late ones, where what was read has become what is said."""


class TrainSettings(BaseModel):
    """How small BatchTopK dictionaries are trained. The defaults suit the embedded model on a CPU."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    expansion: int = Field(1, ge=1, le=1024, description="Features per dimension of the residual stream")
    d_sae: int | None = Field(None, ge=2, le=2**24, description="Number of features; expansion x d_model when empty")
    k: int = Field(16, ge=1, le=100_000, description="Features active per token, on average over a batch")
    tokens: int = Field(16_000, ge=1, le=10**10, description="Tokens of text to read, a tenth of them held out")
    epochs: int = Field(6, ge=1, le=1000, description="Times that each token is trained on")
    library_prose: bool = Field(True, description="Read the embedded prose, topics of Python's documentation")
    texts_share: float = Field(
        0.3, gt=0, le=1, description="The study's own texts are at most this share of the tokens; all, without prose"
    )
    precision: Literal["bfloat16", "float32"] | None = Field(
        None,
        description="Of the model while it is read and of the large products in training: float32 for a model in "
        "float32, else bfloat16, when empty. bfloat16 is several times faster on processors that have it "
        "(AVX512-BF16, AMX, GPUs), and several times slower on others",
    )


class SaeSource(BaseModel):
    """Dictionaries for the residual stream after blocks `layers` (0-based)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: SaeKind = Field("train", description="File format of the dictionaries, or train: make small ones here")
    layers: list[Annotated[int, Field(le=10_000)]] = Field(
        list(DEFAULT_LAYERS),
        min_length=1,
        description="Blocks, from 0, after which the residual stream is read and written",
    )
    location: Location | None = Field(
        None,
        description=(
            "Hugging Face id, local folder or URL, with an optional folder behind it; {layer} stands for the layer "
            "and * for any name: fnlp/Llama3_1-8B-Base-LXR-8x, /data/saes/layer_{layer}, s3://bucket/layer_{layer}. "
            "What is there as written is no pattern; elsewhere write [[] for ["
        ),
    )
    layer_locations: dict[int, Location] = Field(
        {}, description="Location of single layers, where one pattern does not fit them all"
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a Hugging Face id")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Precision in which the two matrices are held; arithmetic is float32 in any case"
    )
    train: TrainSettings = Field(TrainSettings(), description="Used by the kind train only")

    @model_validator(mode="after")
    def _consistent(self) -> SaeSource:
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers {self.layers} names a layer twice")
        if any(layer < 0 for layer in self.layers):
            raise ValueError(f"layers {self.layers} has a negative one; blocks are counted from 0")
        missing = [layer for layer in self.layers if layer not in self.layer_locations]
        if self.kind != "train" and self.location is None and missing:
            raise ValueError(f"kind {self.kind} needs a location for layers {missing}")
        return self


class SaeTrainParams(BaseModel):
    """Params of `sae.train`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: ModelRef
    model_fingerprint: str
    """`tasks.models.fingerprint.fingerprint(model)`: another model is refused."""
    layers: list[int]
    settings: TrainSettings = TrainSettings()
    texts: list[str] = []
    """Read beside the library prose, each as a sequence of its own."""
    chat: bool = False
    """`texts` are a user's messages in the model's chat template, after the message `system` if there is one."""
    system: str | None = None
    answer_prefix: str = ""
    """Comes after each text, or after its chat template."""
    corpus_fingerprint: str
    """`tasks.text.prose.library_fingerprint()`: another embedded prose is refused."""

    @property
    def precision(self) -> Literal["bfloat16", "float32"]:
        """Of the reading and the large products. It follows from the spec alone, never from the machine."""
        return self.settings.precision or ("float32" if self.model.dtype == "float32" else "bfloat16")


KINDS = (TaskKind(name="sae.train", version=2, params=SaeTrainParams, entry="tasks.sae.run:run", preload=MODELS),)
