"""The shards of an outlier study: its models, how the work of each is cut, and the spec of each piece. Pure functions.

Cuts depend on the study alone, never on the machine, so that any machine finds the shards of any other. A spec holds
only what its result depends on: the seed reaches the functional check alone, and a model's name its results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows.planning import cut, last_part, refs
from flows.reports import slug
from tasks.artifacts.manifest import Manifest
from tasks.errors import BadInput
from tasks.models.spec import ModelRef
from tasks.outliers import spec as kinds
from tasks.outliers.spec import SITES, AblationSettings, Criteria, Site
from tasks.spec import LARGEST_BATCH, Seed, TaskSpec
from tasks.text.spec import TextSource

# A scan is cut where the pieces are worth it. A shard loads the model, and on a GPU that takes as long as reading some
# 100,000 tokens, whatever the model: both times grow with its parameters (bytes from a disk at 1 GB/s, operations at a
# third of what the GPU can do). On a CPU loading is nothing beside reading. The merge of few shards costs nothing.
FEWEST_TOKENS_PER_SHARD = 64 * 2048
MOST_SHARDS = 32


class SweepModel(ModelRef):
    """A model to examine. Its source alone will do."""

    name: str | None = Field(
        None,
        min_length=1,
        max_length=80,
        description="What to call it in results and reports; the last part of its source when empty",
    )
    gpus: int = Field(
        1,
        ge=1,
        le=64,
        description="GPUs that a shard of it gets, for a model that one GPU does not hold; without a meaning on a CPU",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=LARGEST_BATCH,
        description="Sequences in one forward pass of this model; that of the study when empty",
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_source(cls, given: Any) -> Any:
        return {"source": given} if isinstance(given, str) else given

    @property
    def ref(self) -> ModelRef:
        """The model alone, as tasks know it."""
        return ModelRef(**{name: getattr(self, name) for name in ModelRef.model_fields})

    @property
    def called(self) -> str:
        return self.name or last_part(self.source).removesuffix(".gguf")


class OutlierSettings(BaseModel):
    """Everything an outlier study depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    models: list[SweepModel] = Field([SweepModel()], min_length=1)
    text: TextSource = TextSource()
    sites: list[Site] = Field(list(SITES), min_length=1)
    criteria: Criteria = Criteria()
    batch_size: int = Field(8, ge=1, le=LARGEST_BATCH)
    ablation: AblationSettings = AblationSettings()
    seed: Seed = 0


@dataclass(frozen=True)
class Examination:
    """What is done to one model of a study. ``name`` is its own among all models, and ``folder`` too."""

    name: str
    model: SweepModel
    settings: OutlierSettings

    @property
    def folder(self) -> str:
        return slug(self.name)

    @property
    def batch_size(self) -> int:
        return self.model.batch_size or self.settings.batch_size

    @cached_property
    def sites(self) -> list[Site]:
        """Each once and in one order: asking for the same sites in another order is the same work."""
        return [site for site in SITES if site in self.settings.sites]

    def prepare(self) -> TaskSpec:
        return kinds.PREPARE.spec(kinds.PrepareParams(model=self.model.ref, text=self.settings.text))

    def scan(self, prepared: Manifest, study: Mapping[str, Any]) -> list[TaskSpec]:
        """``study`` is what `outliers.prepare` found out (its json ``study``)."""
        common = {
            "model": self.model.ref,
            "model_fingerprint": study["model_fingerprint"],
            "sites": self.sites,
            "criteria": self.settings.criteria,
            "batch_size": self.batch_size,
        }
        return [
            kinds.SCAN.spec(kinds.ScanParams(**common, start=start, stop=stop), {"prepared": prepared.ref})
            for start, stop in scan_ranges(study["sequences"], study["tokens"], self.batch_size)
        ]

    def summary(self, prepared: Manifest, scans: Sequence[Manifest]) -> TaskSpec:
        params = kinds.SummaryParams(
            name=self.name,
            model=self.model.ref,
            text=self.settings.text,
            sites=self.sites,
            criteria=self.settings.criteria,
            batch_size=self.batch_size,
        )
        return kinds.SUMMARY.spec(params, {"prepared": prepared.ref, "scans": refs(scans)})

    def ablation(self, prepared: Manifest, summary: Manifest, study: Mapping[str, Any]) -> TaskSpec:
        params = kinds.AblationParams(
            model=self.model.ref,
            model_fingerprint=study["model_fingerprint"],
            batch_size=self.batch_size,
            settings=self.settings.ablation,
        )
        inputs = {"prepared": prepared.ref, "summary": summary.ref}
        return kinds.ABLATION.spec(params, inputs, self.settings.seed)

    def has_to_check(self, summary: Mapping[str, Any]) -> bool:
        """Whether there is something to set to zero: a dimension of the norms with an outlier (``summary`` is the json
        of `outliers.summary`)."""
        if not self.settings.ablation.enabled or "norms" not in summary["sites"]:
            return False
        return summary["sites"]["norms"][summary["headline"]]["occurrences"] > 0


@dataclass(frozen=True)
class Examined:
    """The finished shards of a model."""

    examination: Examination
    prepared: Manifest
    summary: Manifest
    ablation: Manifest | None = None


@dataclass(frozen=True)
class Failure:
    """Where a model's examination ended before its time."""

    examination: Examination
    stage: str
    reason: str

    def __str__(self) -> str:
        return f"{self.examination.name} ({self.stage}): {self.reason}"


def examinations(settings: OutlierSettings) -> list[Examination]:
    """One for each model, with names of their own: where two models of one source differ in precision, it is added.

    Raises:
        BadInput: a model is there twice, or two have one name, naming the later one.
    """
    called = [model.called for model in settings.models]
    names = [
        name if model.name or called.count(name) == 1 else f"{name} {model.dtype}"
        for name, model in zip(called, settings.models, strict=True)
    ]
    for i, (name, model) in enumerate(zip(names, settings.models, strict=True)):
        if not slug(name):
            raise BadInput(f"models.{i}.name", name, "has no letter or digit", "give it a name with some of a to z")
        for j in range(i):
            if settings.models[j].ref == model.ref:
                raise BadInput(f"models.{i}.source", model.source, f"is the same model as models.{j}", "remove one")
            if slug(names[j]) == slug(name):
                problem = f"is as good as the name of models.{j}, {names[j]!r}"
                raise BadInput(f"models.{i}.name", name, problem, "give one of them another name")
    return [Examination(name, model, settings) for name, model in zip(names, settings.models, strict=True)]


def scan_ranges(sequences: int, tokens: int, batch_size: int) -> list[tuple[int, int]]:
    """Half-open ranges of sequences, one a shard, that begin where a batch does: a cut changes no batch."""
    batches = math.ceil(sequences / batch_size)
    pieces = max(1, min(MOST_SHARDS, tokens // FEWEST_TOKENS_PER_SHARD))
    return [(start * batch_size, min(stop * batch_size, sequences)) for start, stop in cut(batches, pieces)]


def study_name(models: Sequence[SweepModel]) -> str:
    """ "outliers-smollm2-135m-instruct", or of a sweep "outliers-olmoe-1b-7b-0125-and-7-more"."""
    more = f" and {len(models) - 1} more" if len(models) > 1 else ""
    return slug(f"outliers {models[0].called}{more}")


def report_of(settings: OutlierSettings, examined: Sequence[Examined], failures: Sequence[Failure]) -> TaskSpec:
    params = kinds.ReportParams(
        models=[
            kinds.ExaminedModel(
                name=one.examination.name,
                source=one.examination.model.source,
                folder=one.examination.folder,
                ablation=one.ablation is not None,
            )
            for one in examined
        ],
        failures=[
            kinds.FailedModel(
                name=failure.examination.name,
                source=failure.examination.model.source,
                stage=failure.stage,
                reason=failure.reason,
            )
            for failure in failures
        ],
        settings=settings.model_dump(mode="json", exclude={"models"}),
    )
    inputs = {
        "prepared": refs(one.prepared for one in examined),
        "summary": refs(one.summary for one in examined),
        "ablation": refs(one.ablation for one in examined if one.ablation is not None),
    }
    return kinds.REPORT.spec(params, {name: found for name, found in inputs.items() if found}, settings.seed)
