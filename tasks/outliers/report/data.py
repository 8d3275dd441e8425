"""The content of a report on systematic outliers: everything the page shows except what differs between equal runs.

Shares are proportions in [0, 1]. Magnitudes are |x| in the units of the watched tensor. Missing numbers are None.
`all` and `without_first` are the two variants of every result: all positions, or all but the first of each sequence.
"""

from __future__ import annotations

from typing import Literal

from tasks.outliers.spec import Criteria, FailedModel, Variant
from tasks.report.records import Caution, Record, Source


class ModelRow(Record):
    """One model in numbers, of its headline site and variant.

    `systematic`: dimensions that are systematic over all sequences together; `per_sequence`: mean number of those that
    are so in one sequence. The mean shares are over (sequence, systematic dimension) pairs, None without any.
    `massive`: dimensions with a massive activation. `perplexity_ratio`: with the systematic dimensions at zero, or the
    largest where none is systematic, to the untouched model; `random_perplexity_ratio` with as many random ones.
    """

    model: str
    parameters: int | None
    active: int | None
    d_model: int
    systematic: int
    per_sequence: float | None
    mean_layer_share: float | None
    mean_position_share: float | None
    largest_magnitude: float | None
    massive: int
    perplexity_ratio: float | None
    random_perplexity_ratio: float | None


class Counts(Record):
    """What one site holds in one variant.

    `systematic`: dimensions systematic over all sequences together; `pairs`: (sequence, dimension) pairs; `unique`:
    dimensions systematic in at least one sequence; `in_all`: in every one. The shares are over pairs. `one_sided`:
    share of the systematic dimensions of which at least 90 % of the outliers have one sign.
    """

    systematic: int
    pairs: int
    unique: int
    in_all: int
    mean_per_sequence: float | None
    relative_systematic: int
    occurrences: int
    mean_layer_share: float | None
    median_layer_share: float | None
    mean_position_share: float | None
    median_position_share: float | None
    one_sided: float | None


class Point(Record):
    """One watched tensor, in order of depth; `values` = tokens times width."""

    name: str
    layer: int
    kind: str
    values: int
    outliers: dict[Variant, int]
    max_magnitude: dict[Variant, float | None]


class Example(Record):
    """One outlier: its signed value, and where it is."""

    value: float
    point: str
    sequence: int
    position: int


class Dimension(Record):
    """One hidden dimension over all sequences of a site, in one variant.

    `position_share`: positions with an outlier at any point (union); `mean_point_share`: positions with an outlier at
    one point, averaged over the points that have any. `relative_*`: the same with |x| >= threshold times the token's
    root mean square. `recurrence`: share of the sequences in which it is systematic by itself (`sequences` of them).
    """

    dim: int
    systematic: bool
    layer_share: float
    position_share: float
    mean_point_share: float
    max_point_share: float
    max_magnitude: float
    occurrences: int
    positive: int
    negative: int
    relative_systematic: bool
    relative_layer_share: float
    relative_position_share: float
    massive_occurrences: int
    max_over_rms: float | None
    max_over_median: float | None
    sequences: int
    recurrence: float
    examples: list[Example]

    @property
    def positive_share(self) -> float | None:
        signed = self.positive + self.negative
        return self.positive / signed if signed else None


class HeatMap(Record):
    """Largest magnitude and number of outliers by [point, dimension]; None where there is no outlier."""

    dims: list[int]
    left_out: int
    magnitude: dict[Variant, list[list[float | None]]]
    occurrences: dict[Variant, list[list[int | None]]]


class Site(Record):
    """What was found at one site.

    `dimensions` are by variant the systematic ones and the largest others, strongest first, of `with_outliers`
    dimensions that have an outlier at all. `tokens` are those that shares of a point refer to.
    """

    site: str
    points: list[Point]
    tokens: dict[Variant, int]
    counts: dict[Variant, Counts]
    dimensions: dict[Variant, list[Dimension]]
    with_outliers: dict[Variant, int]
    heat: HeatMap
    nan: int
    inf: int

    def systematic(self, variant: Variant) -> list[Dimension]:
        """Systematic dimensions, strongest first."""
        return [d for d in self.dimensions[variant] if d.systematic]


class Massive(Record):
    """Massive activations of one dimension of one site; `point` holds the largest."""

    site: str
    dim: int
    points: int
    first_layer: int
    last_layer: int
    max_magnitude: float
    point: str
    occurrences: int
    at_first_position: int


class NearestMassive(Record):
    """The activation that comes nearest to a massive one; `ratio`: to its token's median magnitude, None if that is 0.

    `sequence` and `position` count from 0.
    """

    site: str
    point: str
    layer: int
    dim: int
    sequence: int
    position: int
    value: float
    ratio: float | None


class Expert(Record):
    """One expert of one layer. `share`: of all tokens; rates: tokens with an outlier / tokens, into and out of it.

    What goes in is None where it was not watched.
    """

    layer: int
    expert: int
    kind: Literal["routed", "shared"]
    tokens: int
    share: float | None
    expected_share: float | None
    mean_weight: float | None
    rate_in: float | None
    rate_out: float | None
    with_outlier_in: int | None
    with_outlier_out: int


class Effect(Record):
    """What the model loses with some dimensions at zero; ratios and changes are against the untouched model."""

    condition: str
    n_dims: int
    draws: int
    perplexity: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    top1: float | None
    top1_change: float | None
    top1_low: float | None
    top1_high: float | None


class Ablation(Record):
    """The functional check. `largest` are the dimensions of the condition of that name."""

    sequences: int
    tokens: int
    effects: list[Effect]
    largest: list[int]

    def effect(self, condition: str) -> Effect | None:
        return next((e for e in self.effects if e.condition == condition), None)

    @property
    def main(self) -> tuple[Effect | None, Effect | None]:
        """The systematic dimensions at zero, or the largest where none is systematic, and their random control."""
        name = "systematic" if self.effect("systematic") else "largest"
        return self.effect(name), self.effect(f"random_{name}")


class ModelFacts(Record):
    """What was run on one model."""

    model: str
    fingerprint: str
    model_type: str
    architecture: str | None
    n_layers: int
    d_model: int
    dtype: str
    quantization: str | None
    parameters: int | None
    active: int | None
    text: str
    bos: bool
    sequences: int
    asked_sequences: int
    tokens: int
    longest: int
    documents: int | None
    batch_size: int
    experts: str | None


class Found(Record):
    """What the tables say of one model. `sites` come with the headline site first.

    `variant` is the one that is called systematic; `massive_dims` counts the dimensions with massive activations at
    any site, and `massive` holds the largest of the `massive_rows` (site, dimension) pairs. `nearest_massive` is there
    where these are none but some value is an outlier.
    """

    name: str
    source: str
    facts: ModelFacts
    criteria: Criteria
    variant: Variant
    sites: list[Site]
    massive: list[Massive]
    massive_rows: int
    massive_dims: int
    nearest_massive: NearestMassive | None
    experts: list[Expert]
    ablation: Ablation | None

    @property
    def site(self) -> Site:
        return self.sites[0]

    @property
    def counts(self) -> Counts:
        return self.site.counts[self.variant]

    @property
    def is_moe(self) -> bool:
        return self.facts.experts is not None


class ModelReport(Found):
    """One model, with what its tables mean in words and in one row of numbers."""

    headline: str
    detail: str
    cautions: list[Caution]
    row: ModelRow


class OutliersData(Record):
    """A report, ready to be shown.

    `headline` and `lead` are the answer; `findings` say more, model by model. `cautions` concern the sweep as a whole,
    each model has its own.
    """

    title: str
    headline: str
    lead: str
    findings: list[str]
    cautions: list[Caution]
    models: list[ModelReport]
    failures: list[FailedModel]
    settings: dict[str, str]
    sources: list[Source]
