"""Parameters of the patching study, and of every kind of task it is made of.

`*Settings` are what a user chooses; they become the command line and the form. `*Params` are what one task
needs, taken apart so that a task's result follows from its spec alone and changes only with what it depends on:
a model travels with its fingerprint, a scenario as content instead of a path, and counts of later stages do not
reach the specs of earlier ones. The run seed is `TaskSpec.seed`.

Ranges are half-open: `start` <= index < `stop`.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from tasks.engines.choice import EngineChoice, EngineName
from tasks.models.spec import ModelRef
from tasks.patching.scenario import Contrast, Parser, Prompt, Scenario
from tasks.places.location import Location
from tasks.sae.spec import SaeSource
from tasks.spec import MODELS, Seed, TaskKind
from tasks.text.spec import Frame

Scope = Literal["last", "decode", "all"]
Mode = Literal["keep_error", "reconstruct"]
Phase = Literal["discovery", "confirmation"]
Arm = Literal["baseline", "reconstruction", "feature", "random"]
PLAIN_ARMS: tuple[Arm, ...] = ("baseline", "reconstruction")
"""Arms that no candidate enters."""
PATCHED_ARMS: tuple[Arm, ...] = ("feature", "random")
"""Arms that write a value along a candidate's direction, and along its random control."""
ARMS = (*PLAIN_ARMS, *PATCHED_ARMS)

Family = Literal["primary", "secondary"]
FAMILIES: tuple[Family, ...] = ("primary", "secondary")

HIGH_VS_LOW = "high_vs_low"
"""Both cells hold the same edit and differ in its value alone: the one contrast in which discoveries are made."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# What a user chooses


class ScenarioRef(_Model):
    """Which scenario to study."""

    source: Location = Field(
        "slot_machine_advice",
        min_length=1,
        title="Scenario",
        description="Built-in (slot_machine_advice or slot_machine_chat for instruct models, slot_machine for base "
        "models), or path or URL of a YAML file.",
    )
    min_choice_mass: float = Field(
        0.02,
        ge=0,
        le=1,
        title="Smallest mass of the choices",
        description="Before anything else runs, the probability that the answer begins with one of the choices' first "
        "tokens is measured on each prompt. Below this, or where the parser reads none of the first answers, the "
        "scenario is refused, with what would mend it. 0 lets every scenario through.",
    )


class ContrastSettings(_Model):
    """How candidate features are found: their activations are compared between two groups of prompts."""

    prompts_per_group: int = Field(
        24, ge=2, le=100_000, description="Prompts of each group (all of a group that has fewer)."
    )
    top_k_per_layer: int = Field(
        24, ge=1, le=100_000, description="Candidates per layer: the features with the largest |Cohen's d|."
    )
    max_q: float | None = Field(
        None, gt=0, le=1, description="Candidates need a q-value (over all features of all layers) up to this."
    )
    max_p: float | None = Field(None, gt=0, le=1, description="Candidates need a p-value up to this.")
    min_abs_d: float | None = Field(None, ge=0, le=1e6, description="Candidates need at least this |Cohen's d|.")


class ScreenSettings(_Model):
    """Exact probabilities of each choice under every edit, from the logits of the first answer token."""

    doses: list[Annotated[float, Field(ge=-1000, le=1000)]] = Field(
        [-1.0, 0.0, 0.5, 1.0, 2.0],
        min_length=2,
        max_length=25,
        description="Patch values: 0 is the mean of the low group, 1 that of the high group, others lie on the "
        "line through both.",
    )

    @model_validator(mode="after")
    def _both_means(self) -> ScreenSettings:
        if not {0.0, 1.0} <= set(self.doses) or len(set(self.doses)) != len(self.doses):
            raise ValueError(
                f"doses={self.doses}: they must be distinct and include 0 (low mean) and 1 (high mean), "
                "since the survivors are chosen by the difference between these two"
            )
        return self


class Limits(NamedTuple):
    """`max_survivors`: None for no limit."""

    max_survivors: int | None
    min_effect: float


LIMITS = {"screen": Limits(max_survivors=2, min_effect=0.08), "all": Limits(max_survivors=None, min_effect=0.0)}


class SelectionSettings(_Model):
    """Which candidates are sampled after the screen, and are put to the one test that it predicts for each.

    Few trials cannot confirm a small effect: of two survivors with 400 trials a value, 80 of 100 studies find one that
    moves a choice by 10 points around 50 %, and 50 of 100 one that moves it by 7. The report says what a study's own
    trials can detect.
    """

    candidates: Literal["screen", "all"] = Field(
        "screen", description="'screen': those whose exact effect is large enough. 'all': every candidate."
    )
    max_survivors: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description=f"At most this many, by exact effect, whatever `candidates` says. Not given: "
        f"{LIMITS['screen'].max_survivors} for 'screen', no limit for 'all'.",
    )
    min_effect: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Smallest change of a choice's exact probability, high against low value, on any prompt, whatever "
        f"`candidates` says. Not given: {LIMITS['screen'].min_effect} for 'screen', 0 for 'all'.",
    )

    @property
    def limits(self) -> Limits:
        """What was given, else what goes with `candidates`."""
        own = LIMITS[self.candidates]
        return Limits(
            own.max_survivors if self.max_survivors is None else self.max_survivors,
            own.min_effect if self.min_effect is None else self.min_effect,
        )


class TrialSettings(_Model):
    """Sampled generations under every condition."""

    trials_per_cell: int = Field(400, ge=1, le=100_000, description="Generations per feature and condition.")
    baseline_trials: int = Field(
        100,
        ge=1,
        le=100_000,
        description="Generations per unedited condition; they are shared by all features, so more of them are cheap.",
    )
    max_new_tokens: int = Field(8, ge=1, le=4096, description="Length of a generation, in tokens.")
    temperature: float = Field(0.7, ge=0, le=10, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling: share of probability mass kept.")
    scope: Scope = Field(
        "decode",
        description="Positions that are edited: 'last' the last prompt token alone, 'decode' that and every "
        "generated token, 'all' every prompt token too.",
    )
    mode: Mode = Field(
        "keep_error",
        description="'keep_error' moves the residual along one decoder row. 'reconstruct' replaces it by the SAE's "
        "edited reconstruction and so drops the SAE's error; effects are then measured against reconstruction.",
    )
    engine: EngineChoice = Field(
        "auto",
        description="What samples the generations. 'torch' runs every model, on CPUs and GPUs. 'vllm' is meant for "
        "large models on GPUs and needs an environment of its own (see the README). 'auto' is vllm on GPUs where its "
        "environment is there and takes the model, else torch. The first-token screen runs on torch in any case: "
        "there an edit costs one forward pass of one token, since all of them share a prompt's keys and values; "
        "vLLM's prefix cache has to keep edits apart.",
    )

    @model_validator(mode="after")
    def _greedy_repeats_are_no_samples(self) -> TrialSettings:
        for name in ("trials_per_cell", "baseline_trials"):
            count = getattr(self, name)
            if self.temperature == 0 and count > 1:
                raise ValueError(
                    f"{name}={count} with temperature=0: greedy repeats are identical, not samples. "
                    f"Set temperature above 0, or {name}=1"
                )
        return self


class ConfirmSettings(_Model):
    """Repetition of the discoveries on held-out seeds."""

    enabled: bool = Field(True, description="Repeat discoveries on seeds that no earlier stage used.")
    trials_per_cell: int = Field(400, ge=2, le=100_000, description="Generations per feature and condition.")
    max_features: int = Field(20, ge=1, le=100_000, description="At most this many features, smallest q first.")


class VerdictSettings(_Model):
    """When an effect counts as a discovery.

    The primary family has one test a feature, the prompt, choice and direction that the exact screen predicts; every
    other test is in the secondary family.
    """

    alpha: float = Field(
        0.05, gt=0, lt=1, description="False discovery rate of each family of tests, and level of intervals."
    )
    min_effect: float = Field(0.05, ge=0, le=1, description="Smallest difference of rates that counts.")
    test: Literal["fisher", "boschloo", "barnard"] = Field(
        "fisher",
        description="Exact test of two proportions. Boschloo and Barnard have more power and take far longer.",
    )


class WordsSettings(_Model):
    """Which words a feature adds or removes."""

    alpha: float = Field(
        0.05, gt=0, lt=1, description="False discovery rate over words, features and contrasts; level of intervals."
    )
    min_responses: int = Field(
        5, ge=1, le=10**9, description="A word is tested if at least this many responses of a contrast hold it."
    )
    text: Literal["answer", "whole"] = Field(
        "answer",
        description="'answer': up to where the model starts the scenario anew. 'whole': the whole response.",
    )


class StudySettings(_Model):
    """Everything a patching study depends on."""

    model: ModelRef = ModelRef()
    saes: SaeSource = SaeSource()
    scenario: ScenarioRef = ScenarioRef()
    seed: Seed = Field(0, description="Run seed; every random number of the study derives from it.")
    contrast: ContrastSettings = ContrastSettings()
    screen: ScreenSettings = ScreenSettings()
    selection: SelectionSettings = SelectionSettings()
    trials: TrialSettings = TrialSettings()
    confirm: ConfirmSettings = ConfirmSettings()
    verdict: VerdictSettings = VerdictSettings()
    words: WordsSettings = WordsSettings()

    @model_validator(mode="after")
    def _greedy_confirmation(self) -> StudySettings:
        if self.trials.temperature == 0 and self.confirm.enabled:
            raise ValueError(
                "confirm.enabled=true with trials.temperature=0: greedy generations do not depend on the seed, so "
                "held-out seeds confirm nothing. Set trials.temperature above 0, or confirm.enabled=false"
            )
        return self

    def with_engine(self, engine: EngineName) -> StudySettings:
        """This study with its choice of an engine settled."""
        return self.model_copy(update={"trials": self.trials.model_copy(update={"engine": engine})})


# What one task needs


class _OnModel(_Model):
    """A task that runs the model."""

    model: ModelRef
    model_fingerprint: str
    frame: Frame


class _OnModelWithSaes(_OnModel):
    """A task that may also put an SAE's reconstruction in the model.

    `sae_fingerprints`: by layer; empty if the SAEs are trained, since they then come from the input `saes`.
    """

    saes: SaeSource
    sae_fingerprints: dict[int, str]
    low: str
    high: str
    mode: Mode
    scope: Scope
    temperature: float
    top_p: float


class IdentifyParams(_Model):
    """No inputs."""

    model: ModelRef
    saes: SaeSource


class PrepareParams(_Model):
    """Input: `identity`. Checks tokenizer, config, SAE files, scenario and lengths against each other."""

    model: ModelRef
    saes: SaeSource
    scenario: Scenario
    prompts_per_group: int
    max_new_tokens: int


class ActivationsParams(_OnModel):
    """No inputs. Residuals of contrast prompts `start` to `stop` of `contrast_prompts(contrast, n, seed)`.

    `layers`: which residual streams, in the order of the stored tensor's second axis.
    """

    contrast: Contrast
    prompts_per_group: int
    layers: list[int]
    start: int
    stop: int


class ContrastParams(_Model):
    """Inputs: `activations` (list, in order of prompts); `saes` if they are trained."""

    saes: SaeSource
    sae_fingerprints: dict[int, str]
    low: str
    high: str
    settings: ContrastSettings


class ChoiceTokens(_Model):
    """A choice as the task `prepare` found it in the model's vocabulary."""

    name: str
    tokens: list[int]


class ChoicesParams(_OnModel):
    """No inputs. `frame` and `prompts` are tried without an edit, sampled as the study samples."""

    prompts: list[Prompt]
    choices: list[ChoiceTokens]
    parser: Parser
    stop_strings: list[str]
    max_new_tokens: int
    temperature: float
    top_p: float
    min_choice_mass: float


class ScreenParams(_OnModelWithSaes):
    """Inputs: `contrast`; `saes` if trained. Rows `start` to `stop` of table `candidates`."""

    prompts: list[Prompt]
    choices: list[ChoiceTokens]
    settings: ScreenSettings
    start: int
    stop: int


class SurvivorsParams(_Model):
    """Inputs: `contrast`, `screen` (list)."""

    prompts: list[str]
    choices: list[str]
    settings: SelectionSettings


class TrialsParams(_OnModelWithSaes):
    """Inputs: `contrast`; `candidates`: the survivors (discovery) or a verdict (confirmation); `saes` if trained.

    Runs trials `trial_start` to `trial_stop` of every cell of `arms`. Arms `feature` and `random` cover candidates
    `start` to `stop` in the order of the input `candidates`; `baseline` and `reconstruction` (once for each layer of
    the input) don't depend on that range, so they run once, in shards of their own.
    """

    engine: EngineName
    phase: Phase
    arms: list[Arm] = Field(min_length=1)
    prompts: list[Prompt]
    parser: Parser
    stop_strings: list[str]
    max_new_tokens: int
    start: int
    stop: int
    trial_start: int
    trial_stop: int


class VerdictParams(_Model):
    """Inputs: `survivors`; `trials` (list, discovery); `confirmation` (list) once the discoveries were repeated."""

    prompts: list[str]
    choices: list[str]
    low: str
    high: str
    mode: Mode
    temperature: float
    max_confirmed_features: int
    settings: VerdictSettings


class WordsParams(_Model):
    """Inputs: `trials` (list, discovery)."""

    prompts: list[str]
    low: str
    high: str
    restart: list[str]
    settings: WordsSettings


class ReportParams(_Model):
    """What a study's report says beyond its tables.

    Inputs: `study`, `contrast`, `survivors`, `verdict`, `words`; where they exist `choices`, `saes` (trained ones) and
    the lists `screen`, `trials` (discovery), `confirmation` (trials on held-out seeds), `activations`. The run seed is
    the spec's seed.
    """

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
    settings: dict[str, JsonValue] = Field(default_factory=dict, description="Everything that was asked for.")
    examples: int = Field(4, ge=0, le=50, description="Responses to show per condition.")


IDENTIFY = TaskKind("patching.identify", 1, IdentifyParams, "tasks.patching.identify:run", always_run=True)
PREPARE = TaskKind("patching.prepare", 2, PrepareParams, "tasks.patching.prepare:run", preload=MODELS)
CHOICES = TaskKind("patching.choices", 1, ChoicesParams, "tasks.patching.choices:run", preload=MODELS)
ACTIVATIONS = TaskKind("patching.activations", 2, ActivationsParams, "tasks.patching.activations:run", preload=MODELS)
CONTRAST = TaskKind("patching.contrast", 1, ContrastParams, "tasks.patching.contrast:run", preload=MODELS)
SCREEN = TaskKind("patching.screen", 2, ScreenParams, "tasks.patching.screen:run", preload=MODELS)
SURVIVORS = TaskKind("patching.survivors", 2, SurvivorsParams, "tasks.patching.survivors:run")
TRIALS = TaskKind(
    "patching.trials",
    2,
    TrialsParams,
    "tasks.patching.trials:run",
    preload=MODELS,
    environment=lambda params: params.engine,
)
VERDICT = TaskKind("patching.verdict", 3, VerdictParams, "tasks.patching.run_verdict:run")
WORDS = TaskKind("patching.words", 1, WordsParams, "tasks.patching.run_words:run")
REPORT = TaskKind("patching.report", 1, ReportParams, "tasks.patching.report.run:run")

KINDS = (IDENTIFY, PREPARE, CHOICES, ACTIVATIONS, CONTRAST, SCREEN, SURVIVORS, TRIALS, VERDICT, WORDS, REPORT)
