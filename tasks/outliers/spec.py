"""Parameters and kinds of outlier tasks. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from tasks.models.spec import ModelRef
from tasks.places.location import Location
from tasks.spec import MODELS, TaskKind
from tasks.text.spec import TextSource

Site = Literal["norms", "residual"]
"""What is watched: `norms`, what enters each block's attention and FFN; `residual`, what leaves each block."""
SITES: tuple[Site, ...] = ("norms", "residual")

Variant = Literal["all", "without_first"]
"""Of every result: of all positions, or of all but the first of each sequence."""
VARIANTS: tuple[Variant, ...] = ("all", "without_first")

Criterion = Literal["absolute", "relative", "massive"]
CRITERIA: tuple[Criterion, ...] = ("absolute", "relative", "massive")
"""Order of the criteria wherever arrays have an axis for them."""
LARGEST = 1e12
"""Of a criterion: far above any activation, and no trouble in float32."""
ABSOLUTE, RELATIVE, MASSIVE = range(len(CRITERIA))


def headline_site(watched: Collection[str]) -> Site:
    """The site whose sequences are reported one by one, and whose dimensions are checked: `norms` if watched."""
    return "norms" if "norms" in watched else "residual"


class Criteria(BaseModel):
    """When an activation is an outlier, and when a dimension is a systematic one (LLM.int8(), arXiv 2208.07339)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    threshold: float = Field(
        6.0, gt=0, le=LARGEST, description="An activation of at least this magnitude is an outlier"
    )
    layer_share: float = Field(
        0.25, gt=0, le=1, description="A systematic dimension has outliers at this share of the watched points, or more"
    )
    position_share: float = Field(
        0.06, gt=0, le=1, description="... and at this share of the sequence's positions, or more"
    )
    first_position: bool = Field(
        True,
        description="Count the first position, whose token (BOS) carries massive activations. Results with and "
        "without it are reported either way; this chooses which ones are called systematic",
    )
    relative_threshold: float = Field(
        6.0,
        gt=0,
        le=LARGEST,
        description="The scale-free companion: an activation of at least so many times its token's root mean square",
    )
    massive_magnitude: float = Field(
        100.0, gt=0, le=LARGEST, description="A massive activation is larger than this magnitude"
    )
    massive_ratio: float = Field(
        1000.0,
        gt=0,
        le=LARGEST,
        description="... and at least so many times its token's median magnitude (arXiv 2402.17762)",
    )

    @property
    def headline(self) -> Variant:
        """The variant whose results are called systematic: "all" positions, or "without_first"."""
        return "all" if self.first_position else "without_first"


class AblationSettings(BaseModel):
    """The functional check: what the model loses when the found dimensions are set to zero."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    enabled: bool = Field(True, description="Measure perplexity with the found dimensions, and random ones, at zero")
    sequences: int = Field(16, ge=1, le=1_000_000, description="Sequences to measure on: the first ones")
    largest: int = Field(
        7,
        ge=1,
        le=1_000_000,
        description="Besides all systematic dimensions, the so many of the largest magnitude are set to zero; where "
        "none is systematic, of those with any outlier",
    )
    random_draws: int = Field(5, ge=1, le=100, description="Draws of as many random dimensions, for comparison")


class PrepareParams(BaseModel):
    """Params of `outliers.prepare`: the model is looked at and the text is cut into sequences."""

    model_config = ConfigDict(extra="forbid")

    model: ModelRef
    text: TextSource


class ScanParams(BaseModel):
    """Params of `outliers.scan`. Input: `prepared`."""

    model_config = ConfigDict(extra="forbid")

    model: ModelRef
    model_fingerprint: str
    sites: list[Site] = Field(list(SITES), min_length=1)
    criteria: Criteria = Criteria()
    batch_size: int = Field(8, ge=1, description="Sequences in one forward pass; decides the last bits of the result")
    start: int = Field(ge=0)
    stop: int = Field(gt=0)
    """Sequences `start` to `stop` of the prepared ones."""


class SummaryParams(BaseModel):
    """Params of `outliers.summary`. Inputs: `prepared`, and the list `scans`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """What the model is called in results and reports."""
    model: ModelRef
    text: TextSource
    sites: list[Site]
    criteria: Criteria
    batch_size: int


class AblationParams(BaseModel):
    """Params of `outliers.ablation`. Inputs: `prepared`, `summary`."""

    model_config = ConfigDict(extra="forbid")

    model: ModelRef
    model_fingerprint: str
    batch_size: int
    settings: AblationSettings


class ExaminedModel(BaseModel):
    """A model that was examined."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="What the model is called.")
    source: Location = Field(description="Where it came from.")
    folder: str = Field(min_length=1, description="Folder of its results, beside the page.")
    ablation: bool = Field(False, description="Its functional check ran.")


class FailedModel(BaseModel):
    """A model that was asked for and could not be examined."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="What the model is called.")
    source: Location = Field(description="Where it was to come from.")
    stage: str = Field(description="Stage that failed.")
    reason: str = Field(description="Why, in words.")


class ReportParams(BaseModel):
    """What a report on systematic outliers says beyond its tables.

    Inputs: the lists `prepared` and `summary`, one of each per model and in their order; `ablation`, of those models
    whose functional check ran, in order. A list without shards may be left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field("Systematic outlier dimensions", min_length=1, description="Title of the page.")
    models: list[ExaminedModel] = Field(description="Models in the order to show.")
    failures: list[FailedModel] = Field(default_factory=list, description="Models that failed.")
    settings: dict[str, JsonValue] = Field(default_factory=dict, description="Everything that was asked for.")


PREPARE = TaskKind(
    "outliers.prepare", 1, PrepareParams, "tasks.outliers.run_prepare:run", always_run=True, preload=MODELS
)
SCAN = TaskKind("outliers.scan", 2, ScanParams, "tasks.outliers.run_scan:run", preload=MODELS)
SUMMARY = TaskKind("outliers.summary", 2, SummaryParams, "tasks.outliers.run_summary:run", preload=MODELS)
ABLATION = TaskKind("outliers.ablation", 1, AblationParams, "tasks.outliers.run_ablation:run", preload=MODELS)
REPORT = TaskKind("outliers.report", 1, ReportParams, "tasks.outliers.report.run:run")

KINDS = (PREPARE, SCAN, SUMMARY, ABLATION, REPORT)
