"""Parameters and kinds of report tasks."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from tasks.models.spec import ModelRef
from tasks.spec import TaskKind


class PatchingReportParams(BaseModel):
    """What a patching study's report says beyond its tables.

    Inputs: `study`, `contrast`, `survivors`, `verdict`, `words`; where they exist the lists `screen`, `trials`
    (discovery), `confirmation` (trials on held-out seeds), `activations`, and `saes` (trained SAEs). The run seed is
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


PATCHING = TaskKind("report.patching", 1, PatchingReportParams, "tasks.report.patching.run:run")

KINDS = (PATCHING,)
