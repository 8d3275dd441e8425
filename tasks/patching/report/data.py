"""The content of a report: everything a page shows except what differs between two equal runs.

All rates, probabilities and effects are proportions in [-1, 1]; the page shows them as percentages and
percentage points. Activations and patch values are in raw residual units. Missing numbers are None.
"""

from __future__ import annotations

from typing import Literal

from tasks.patching.spec import Arm, Family
from tasks.report.records import Caution, Record, Source

Status = Literal["confirmed", "unconfirmed", "untested"]


class Rate(Record):
    """`k` of `n` trials ended with the choice in question."""

    n: int
    k: int

    @property
    def rate(self) -> float | None:
        return self.k / self.n if self.n else None


class Estimate(Record):
    """A difference of two rates, a - b, with its interval at level 1 - alpha."""

    effect: float
    ci_low: float
    ci_high: float
    a: Rate
    b: Rate
    p: float | None = None
    q: float | None = None


class Beyond(Record):
    """By how much an effect exceeds that of the random direction in size, with its interval at level 1 - alpha."""

    effect: float
    ci_low: float
    ci_high: float
    q: float


class FeatureId(Record):
    """One SAE feature: `layer` is the residual stream after that block (0-based)."""

    candidate: int
    layer: int
    feature: int

    @property
    def name(self) -> str:
        return f"L{self.layer}/{self.feature}"


class Finding(Record):
    """One discovery: a contrast of one feature, prompt and choice that passed the threshold of its family.

    `predicted`: the exact effect that made it a test of the primary family. `control`: the same difference along the
    random direction; `beyond` compares the two, and `specific` says whether the feature's was shown to be larger. These
    are None if no random direction was sampled.
    """

    id: FeatureId
    prompt: str
    contrast: str
    choice: str
    family: Family
    predicted: float | None
    label: str
    estimate: Estimate
    control: Estimate | None
    beyond: Beyond | None
    confirmation: Estimate | None
    specific: bool | None
    status: Status
    sentence: str


class EffectRow(Record):
    """High value against low value for one sampled feature, prompt and choice, with its control beside it."""

    id: FeatureId
    prompt: str
    choice: str
    family: Family
    estimate: Estimate
    control: Estimate | None
    confirmation: Estimate | None
    exact: float | None
    baseline: Rate | None
    status: Status | None


class DoseCurve(Record):
    """Exact first-token probability of one choice over doses (0 = low value, 1 = high value)."""

    id: FeatureId
    prompt: str
    choice: str
    doses: list[float]
    values: list[float]
    feature: list[float | None]
    random: list[float | None]
    baseline: float | None


class Agreement(Record):
    """How exact and sampled effects compare: `inside` of `n` exact effects lie in the sampled interval."""

    n: int
    inside: int
    median_difference: float


class CandidatePoint(Record):
    """One candidate of the contrast.

    `exact` is its largest |P(choice; high value) - P(choice; low value)| over prompts and choices, `exact_control`
    that of its random direction.
    """

    id: FeatureId
    d: float
    q: float | None
    value_low: float
    value_high: float
    exact: float | None
    exact_control: float | None
    stage: Literal["candidate", "survivor", "discovery"]


class LayerRow(Record):
    """How many features of a layer passed each stage, and how well its SAE reconstructs."""

    layer: int
    searched: int
    significant: int
    candidates: int
    survivors: int
    discoveries: int
    variance_explained: float | None = None
    l0: float | None = None
    dead_share: float | None = None


class ChoiceCell(Record):
    """Counts of every choice, invalid included, in one set of trials."""

    prompt: str
    arm: Arm
    layer: int | None
    n: int
    counts: dict[str, int]


class WordRow(Record):
    """A word whose share of responses that contain it differs between two conditions."""

    id: FeatureId
    contrast: str
    word: str
    direction: Literal["adds", "removes"]
    a: Rate
    b: Rate
    effect: float
    p: float
    q: float


class Example(Record):
    """One generated response with the decision that the parser read."""

    trial: int
    seed: int
    response: str
    cut: int
    choice: str
    amount: float | None
    rule: str


class ExampleColumn(Record):
    """Responses of one condition; `value` is the patch value, None without an edit."""

    title: str
    condition: str
    value: float | None
    items: list[Example]


class ExampleSet(Record):
    """The same feature and prompt under no edit, the low value and the high value."""

    id: FeatureId
    prompt: str
    columns: list[ExampleColumn]


class SaeFact(Record):
    """Identity of one layer's SAE."""

    layer: int
    fingerprint: str


class Prompt(Record):
    """A prompt of the scenario as the model saw it."""

    name: str
    text: str
    tokens: int | None
    tried: str | None = None
    """What the model said before anything was edited."""


class Setup(Record):
    """What was run."""

    model: str
    model_fingerprint: str
    model_type: str
    n_layers: int
    d_model: int
    scenario: str
    prompts: list[Prompt]
    choices: list[str]
    low: str
    high: str
    alpha: float
    sae: str
    sae_convention: str
    saes: list[SaeFact]
    seed: int
    settings: dict[str, str]


class Screened(Record):
    """What the exact screen says of all candidates.

    `effect` is the largest change of any choice's probability, of feature `id` on `prompt`; None if nothing moves.
    `min_effect`: what was asked for.
    """

    candidates: int
    min_effect: float
    id: FeatureId | None
    effect: float | None
    prompt: str | None
    choice: str | None


class Detectable(Record):
    """The difference of two rates around 1/2 that so many trials a value find with this power in the primary family.

    `difference`: None if so few trials find none.
    """

    trials: int
    power: float
    difference: float | None


class FamilyNumbers(Record):
    """The size of one family of tests, and what came of it."""

    tests: int
    discoveries: int
    confirmed: int


class KeyNumbers(Record):
    """The sizes of the search."""

    layers: int
    features_searched: int
    candidates: int
    screen_cells: int
    survivors: int
    primary: FamilyNumbers
    """One test a feature, which the exact screen predicts."""
    secondary: FamilyNumbers
    """Every other test."""
    trials_discovery: int
    trials_confirmation: int
    confirmation_ran: bool
    invalid_share: float | None

    @property
    def tests(self) -> int:
        return self.primary.tests + self.secondary.tests


class ReportData(Record):
    """One patching study, ready to be shown.

    `findings` are all discovered contrasts, confirmed and strongest first; `strongest` the best of each feature.
    `nearest` describes the best tests of features that are no discoveries; `advice` says what to change where nothing
    was tested. `effects` are those of discoveries and of the strongest other features. `doses` come in order of
    features to show; `candidates` are the ones to draw, of `numbers.candidates`.
    """

    title: str
    question: str
    headline: str
    nearest: list[str]
    advice: list[str]
    strongest: list[Finding]
    findings: list[Finding]
    numbers: KeyNumbers
    screened: Screened
    detectable: Detectable | None
    cautions: list[Caution]
    effects: list[EffectRow]
    agreement: Agreement | None
    doses: list[DoseCurve]
    candidates: list[CandidatePoint]
    layers: list[LayerRow]
    outcomes: list[ChoiceCell]
    words: list[WordRow]
    examples: list[ExampleSet]
    setup: Setup
    sources: list[Source]
