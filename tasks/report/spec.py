"""Parameters and kinds of report tasks."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from tasks.models.spec import ModelRef
from tasks.places.location import Location
from tasks.spec import TaskKind


class PatchingReportParams(BaseModel):
    """What a patching study's report says beyond its tables.

    Inputs: `study`, `contrast`, `survivors`, `verdict`, `words`; where they exist `choices`, `saes` (trained ones) and
    the lists `screen`, `trials` (discovery), `confirmation` (trials on held-out seeds), `activations`. The run seed is
    the spec's seed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field("Which features cause the choice?", min_length=1, description="Title of the page.")
    question: str = Field("", description="One or two sentences on what was asked.")
    model: ModelRef
    saes: str = Field(description="Where the SAEs come from, in words.")
    scenario: str = Field(description="Name of the scenario.")
    prompts: list[str] = Field(min_length=1, description="Prompts in the order to show.")
    choices: list[str] = Field(min_length=1, description="Choices in the order to show, without 'invalid'.")
    low: str = Field(description="Name of the contrast's low group.")
    high: str = Field(description="Name of the contrast's high group.")
    alpha: float = Field(0.05, gt=0, lt=1, description="False discovery rate of the verdict.")
    words_alpha: float = Field(0.05, gt=0, lt=1, description="False discovery rate of the word lists.")
    settings: dict[str, JsonValue] = Field(
        default_factory=dict, description="Everything else that was asked for; nested names are joined by dots."
    )
    examples: int = Field(4, ge=0, le=50, description="Responses to show per condition.")


class ExaminedModel(BaseModel):
    """A model that was examined."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="What the model is called.")
    source: Location = Field(description="Where it came from.")
    ablation: bool = Field(False, description="Its functional check ran.")


class FailedModel(BaseModel):
    """A model that was asked for and could not be examined."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="What the model is called.")
    source: Location = Field(description="Where it was to come from.")
    stage: str = Field(description="Stage that failed.")
    reason: str = Field(description="Why, in words.")


class OutliersReportParams(BaseModel):
    """What a report on systematic outliers says beyond its tables.

    Inputs: the lists `prepared` and `summary`, one of each per model and in their order; `ablation`, of those models
    whose functional check ran, in order. A list without shards may be left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field("Systematic outlier dimensions", min_length=1, description="Title of the page.")
    models: list[ExaminedModel] = Field(description="Models in the order to show.")
    failures: list[FailedModel] = Field(default_factory=list, description="Models that failed.")
    settings: dict[str, JsonValue] = Field(
        default_factory=dict, description="Everything that was asked for; nested names are joined by dots."
    )


PATCHING = TaskKind("report.patching", 2, PatchingReportParams, "tasks.report.patching.run:run")

OUTLIERS = TaskKind("report.outliers", 2, OutliersReportParams, "tasks.report.outliers.run:run")

KINDS = (PATCHING, OUTLIERS)
