"""The tables of an outlier study, in the order in which its stages write them.

``python -m tasks.outliers.tables`` prints them as a page of the documentation.
"""

from __future__ import annotations

import pyarrow as pa

from tasks.artifacts.schema import Column, TableSchema, markdown

INT32, INT64 = pa.int32(), pa.int64()
SINGLE, FLOAT, TEXT, TRUTH = pa.float32(), pa.float64(), pa.string(), pa.bool_()

SITE = Column("site", TEXT, "What was watched: `norms`, what enters attention and FFN, or `residual`.")
SEQUENCE = Column("sequence", INT32, "Number of the sequence, from 0.")
DIM = Column("dim", INT32, "Number of the hidden dimension, from 0.")
POINT = Column("point", INT32, "Number of the watched point among those of its site, in order of depth.")
NAME = Column("name", TEXT, "What the point is called.")
LAYER = Column("layer", INT32, "Its block, from 0.")
KIND = Column("kind", TEXT, "What enters: `attn`, `mlp` (the FFN) or `both`; `resid`: what leaves the block.")
MAX_MAGNITUDE = Column("max_magnitude", SINGLE, "Largest magnitude, in the units of the watched tensor.")
OCCURRENCES = Column("occurrences", INT64, "Outliers: values of at least the threshold's magnitude.")
NEGATIVE = Column("negative", INT64, "Those below 0.")
NAN = Column("nan", INT64, "Values that are no number.")
INF = Column("inf", INT64, "Values that are infinite.")
FIRST_VALUES = Column("first_values", pa.list_(SINGLE), "The first few outliers.")
MAX_OVER_RMS = Column("max_over_rms", SINGLE, "Largest magnitude against its token's root mean square.")
MAX_OVER_MEDIAN = Column("max_over_median", SINGLE, "Largest magnitude against its token's median magnitude.")
LAYER_SHARE = Column("layer_share", FLOAT, "Share of the points with an outlier.")
POSITION_SHARE = Column("position_share", FLOAT, "Share of the positions with an outlier at any point.")
MEAN_POINT_SHARE = Column(
    "mean_point_share", FLOAT, "Share of the positions, averaged over the points with any outlier."
)

POINT_NAMES = TableSchema("points", "Of a scan: a row for each watched point.", (SITE, POINT, NAME, LAYER, KIND))

SYSTEMATIC = TableSchema(
    "systematic",
    "A row for each sequence and each dimension that is systematic in it, with every position or without the first.",
    (
        SITE,
        SEQUENCE,
        DIM,
        Column("systematic", TRUTH, "Systematic with the positions that were asked for, which all numbers are of."),
        Column("systematic_all", TRUTH, "Systematic with every position."),
        Column("systematic_without_first", TRUTH, "Systematic without the first position."),
        LAYER_SHARE,
        POSITION_SHARE,
        MEAN_POINT_SHARE,
        MAX_MAGNITUDE,
        OCCURRENCES,
        NEGATIVE,
        Column("points", pa.list_(INT32), "The points with an outlier."),
        Column("point_occurrences", pa.list_(INT32), "Outliers at each of these."),
        FIRST_VALUES,
        MAX_OVER_RMS,
        MAX_OVER_MEDIAN,
    ),
)

SEQUENCES = TableSchema(
    "sequences",
    "A row for each site and sequence.",
    (
        SITE,
        SEQUENCE,
        Column("tokens", INT32, "Its tokens."),
        Column("systematic_all", INT32, "Dimensions that are systematic in it with every position."),
        Column("systematic_without_first", INT32, "The same without the first position."),
        NAN,
        INF,
    ),
)

EXAMPLE = pa.struct([("value", SINGLE), ("point", INT32), ("sequence", INT32), ("position", INT32)])

DIMENSIONS = TableSchema(
    "dimensions",
    "A row for each site, positions and dimension with any outlier, over all sequences.",
    (
        SITE,
        Column("positions", TEXT, "The positions that count: `all`, or `without_first` of each sequence."),
        DIM,
        Column("systematic", TRUTH, "Both shares reach the criteria."),
        LAYER_SHARE,
        POSITION_SHARE,
        MEAN_POINT_SHARE,
        Column("max_point_share", FLOAT, "Share of the positions at the point with the most."),
        MAX_MAGNITUDE,
        OCCURRENCES,
        Column("positive", INT64, "Those above 0."),
        NEGATIVE,
        Column("relative_systematic", TRUTH, "The same as `systematic`, against the token's root mean square."),
        Column("relative_layer_share", FLOAT, "The same as `layer_share`, against the token's root mean square."),
        Column("relative_position_share", FLOAT, "The same as `position_share`, against the token's root mean square."),
        Column("relative_occurrences", INT64, "The same as `occurrences`, against the token's root mean square."),
        Column("massive_occurrences", INT64, "Massive activations."),
        MAX_OVER_RMS,
        MAX_OVER_MEDIAN,
        Column("sequences", INT32, "Sequences in which it is systematic by itself."),
        Column("recurrence", FLOAT, "Their share of all sequences."),
        Column("examples", pa.list_(EXAMPLE), "The largest outliers, and where they are."),
        FIRST_VALUES,
    ),
)

DIMENSION_POINTS = TableSchema(
    "dimension_points",
    "A row for each point of each dimension worth a look: those that are systematic by either threshold, over all "
    "sequences or in one, and the largest.",
    (
        SITE,
        DIM,
        POINT,
        OCCURRENCES,
        Column("occurrences_without_first", INT64, "The same without the first position of each sequence."),
        MAX_MAGNITUDE,
        Column("max_magnitude_without_first", SINGLE, "The same without the first position of each sequence."),
    ),
)

POINTS = TableSchema(
    POINT_NAMES.name,
    "Of the summary: a row for each watched point, over all dimensions and sequences.",
    (
        *POINT_NAMES.columns,
        Column("values", INT64, "Values that were looked at: tokens times dimensions."),
        Column("outliers", INT64, "Outliers among them."),
        Column("outliers_without_first", INT64, "The same without the first position of each sequence."),
        MAX_MAGNITUDE,
        Column("max_magnitude_without_first", SINGLE, "The same without the first position of each sequence."),
        NAN,
        INF,
    ),
)

MASSIVE_ACTIVATIONS = TableSchema(
    "massive",
    "A row for each point and dimension with massive activations.",
    (
        SITE,
        POINT,
        NAME,
        LAYER,
        DIM,
        Column("occurrences", INT64, "Massive activations."),
        Column("at_first_position", INT64, "Those at the first position of their sequence."),
        Column("max_magnitude", SINGLE, "The largest of them."),
    ),
)

EXPERTS = TableSchema(
    "experts",
    "A row for each expert of each layer of a mixture of experts.",
    (
        LAYER,
        Column("expert", INT32, "Number of the expert, from 0; the shared ones of a layer count as one, -1."),
        Column("kind", TEXT, "`routed` or `shared`."),
        Column("tokens", INT64, "Tokens that it saw."),
        Column("share", FLOAT, "Their share of all tokens."),
        Column("expected_share", FLOAT, "The share it would have if every routed expert saw as many."),
        Column("mean_weight", FLOAT, "Mean weight of its gate; null of a shared one."),
        Column("tokens_with_outlier_in", INT64, "Tokens with an outlier in what enters; null if unwatched."),
        Column("outliers_in", INT64, "Outliers in what enters; null if unwatched."),
        Column("tokens_with_outlier_out", INT64, "Tokens with an outlier in what the experts write."),
        Column("outliers_out", INT64, "Outliers in what the experts write."),
        Column("outlier_rate_in", FLOAT, "tokens_with_outlier_in / tokens."),
        Column("outlier_rate_out", FLOAT, "tokens_with_outlier_out / tokens."),
    ),
)

CONDITION = Column("condition", TEXT, "What is set to zero: `none`, `systematic`, `largest`, or `random_` and either.")
DRAW = Column("draw", INT32, "Number of the random draw; 0 where nothing is random.")
N_DIMS = Column("n_dims", INT32, "How many dimensions are set to zero.")

ABLATION = TableSchema(
    "ablation",
    "A row for each condition, draw and sequence of the functional check; sums over the predicted tokens.",
    (
        CONDITION,
        DRAW,
        N_DIMS,
        SEQUENCE,
        Column("tokens", INT32, "Predicted tokens: all but the first."),
        Column("nll", FLOAT, "Negative log likelihood, in nats."),
        Column("top1_probability", FLOAT, "Probability of the most probable token."),
        Column("correct", INT32, "Times that this is the real one."),
    ),
)

DIMS = TableSchema(
    "dims",
    "A row for each condition and draw of the functional check.",
    (CONDITION, DRAW, Column("dims", pa.list_(INT32), "The dimensions that are set to zero.")),
)

EFFECTS = TableSchema(
    "effects",
    "A row for each condition of the functional check. Ratio and change are against the untouched model, with 95 % "
    "intervals over sequences; null where a number is not finite.",
    (
        CONDITION,
        N_DIMS,
        Column("draws", INT32, "Random draws that it is the mean of."),
        Column("perplexity", FLOAT, "Perplexity over all sequences."),
        Column("perplexity_ratio", FLOAT, "Perplexity against that of the untouched model."),
        Column("perplexity_ratio_low", FLOAT, "Lower end of its interval."),
        Column("perplexity_ratio_high", FLOAT, "Upper end of it."),
        Column("top1_probability", FLOAT, "Mean probability of the most probable token."),
        Column("top1_change", FLOAT, "Its difference to that of the untouched model."),
        Column("top1_change_low", FLOAT, "Lower end of its interval."),
        Column("top1_change_high", FLOAT, "Upper end of it."),
    ),
)

TABLES = (
    POINT_NAMES,
    SYSTEMATIC,
    SEQUENCES,
    DIMENSIONS,
    DIMENSION_POINTS,
    POINTS,
    MASSIVE_ACTIVATIONS,
    EXPERTS,
    ABLATION,
    DIMS,
    EFFECTS,
)


def page() -> str:
    """The page ``docs/tables/outliers.md``."""
    return markdown("Tables of an outlier study", TABLES)


if __name__ == "__main__":
    print(page(), end="")
