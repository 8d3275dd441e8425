"""The tables of a patching study, in the order in which its stages write them.

``python -m tasks.patching.tables`` prints them as a page of the documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from tasks.artifacts.schema import Column, TableSchema, markdown
from tasks.patching.scenario import INVALID

INT8, INT32, INT64 = pa.int8(), pa.int32(), pa.int64()
FLOAT, TEXT, TRUTH = pa.float64(), pa.string(), pa.bool_()

CANDIDATE = Column("candidate", INT32, "Number of the candidate feature, from 0.")
LAYER = Column("layer", INT32, "The feature is one of the residual stream after this block, counted from 0.")
FEATURE = Column("feature", INT32, "Number of the feature in the SAE of its layer.")
UNIT = Column("unit", TEXT, "Unit of activations and patch values.")
PROMPT = Column("prompt", TEXT, "Name of the prompt.")
CHOICE = Column("choice", TEXT, f"Name of the choice; `{INVALID}` is an answer that makes none.")
ARM = Column(
    "arm",
    TEXT,
    "What is edited: `baseline` nothing, `reconstruction` the SAE's error is dropped, `feature` a value along the "
    "feature's direction, `random` the same along its random direction.",
)

PROMPTS = TableSchema(
    "prompts",
    "A row for each prompt whose activations were recorded.",
    (
        Column("prompt_id", INT64, "Number of the prompt among those of both groups."),
        Column("group", TEXT, "The contrast group it belongs to."),
        Column("text", TEXT, "The prompt, without the frame of a chat."),
        Column("n_tokens", INT32, "Tokens of the prompt as the model read it."),
    ),
)

FEATURES = TableSchema(
    "features",
    "A row for each feature of each layer: how its activations differ between the two groups of prompts.",
    (
        LAYER,
        FEATURE,
        UNIT,
        Column("n_low", INT64, "Prompts of the low group."),
        Column("n_high", INT64, "Prompts of the high group."),
        Column("mean_low", FLOAT, "Mean activation on the low group, zeros included."),
        Column("mean_high", FLOAT, "Mean activation on the high group, zeros included."),
        Column("sd_low", FLOAT, "Standard deviation on the low group."),
        Column("sd_high", FLOAT, "Standard deviation on the high group."),
        Column("active_low", INT64, "Prompts of the low group on which it is above 0."),
        Column("active_high", INT64, "Prompts of the high group on which it is above 0."),
        Column("t", FLOAT, "Welch's t, high minus low; null where it is not defined."),
        Column("df", FLOAT, "Degrees of freedom of t."),
        Column("p", FLOAT, "Two-sided p-value of t."),
        Column("d", FLOAT, "Cohen's d, high minus low."),
        Column("q", FLOAT, "Benjamini-Hochberg over every feature of every layer that could be tested."),
    ),
)

CANDIDATES = TableSchema(
    "candidates",
    "A row for each candidate: the features whose activations differ most, by layer, then by |d|.",
    (
        CANDIDATE,
        LAYER,
        FEATURE,
        UNIT,
        Column("value_low", FLOAT, "The low patch value: the mean activation on the low group."),
        Column("value_high", FLOAT, "The high patch value: the mean activation on the high group."),
        Column("d", FLOAT, "Cohen's d, high minus low."),
        Column("p", FLOAT, "Two-sided p-value of Welch's t."),
        Column("q", FLOAT, "As in table `features`."),
        Column("bank_row", INT32, "Row of the feature's direction in the tensors `bank`."),
        Column("control_row", INT32, "Row of its random direction, of equal norm, in the tensors `bank`."),
    ),
)


def probability(choice: str) -> str:
    """The column of table `screen` that holds the exact probability of a choice."""
    return f"p_{choice}"


def shift(choice: str) -> str:
    """The column of table `screen` that holds what the edit adds to the exact probability of a choice."""
    return f"effect_{choice}"


def screen(choices: Sequence[str]) -> TableSchema:
    """Table `screen` of a scenario with these choices; `invalid` is added."""
    outcomes = [*choices, INVALID]
    return TableSchema(
        "screen",
        "A row for each candidate, prompt, arm and dose: exact probabilities by the first token of the answer. Prompts "
        "without an edit, and with the SAE of each layer alone, have one row each.",
        (
            replace(CANDIDATE, meaning="Number of the candidate; null where none is edited."),
            LAYER,
            FEATURE,
            PROMPT,
            ARM,
            Column("dose", FLOAT, "Where the patch value lies: 0 is the low value, 1 the high one, linear beyond."),
            Column("value", FLOAT, "The patch value; null without one."),
            Column("f_before", FLOAT, "The feature's activation before the edit."),
            Column("relative_delta", FLOAT, "Length of the edit's step against that of the residual vector."),
            *(Column(probability(name), FLOAT, _PROBABILITY.format(choice=name)) for name in outcomes),
            *(Column(shift(name), FLOAT, f"`p_{name}` minus that of the prompt without an edit.") for name in outcomes),
        ),
    )


_PROBABILITY = "Probability that the answer begins with a token of {choice}."

SURVIVORS = TableSchema(
    "survivors",
    "A row for each candidate that is sampled, largest exact effect first.",
    (
        *CANDIDATES.columns,
        Column("effect", FLOAT, "Largest exact effect, P(choice; high value) - P(choice; low value), with its sign."),
        Column("effect_prompt", TEXT, "The prompt of this effect; null where no choice moves at all."),
        Column("effect_choice", TEXT, "The choice of this effect; null where no choice moves at all."),
        Column("control_effect", FLOAT, "Exact effect of the random direction on the same prompt and choice."),
        Column("rank", INT32, "Rank by the size of the effect, from 1."),
    ),
)

TRIALS = TableSchema(
    "trials",
    "A row for each sampled answer.",
    (
        Column("trial_id", INT64, "Names the trial across shards and phases; equal to `seed`."),
        Column("phase", TEXT, "`discovery`, or `confirmation` on held-out seeds."),
        PROMPT,
        Column("condition", TEXT, "Prompt and edit in one name, such as `safe_with_risky_patch`."),
        ARM,
        replace(CANDIDATE, meaning="Number of the candidate; null where none is edited."),
        LAYER,
        FEATURE,
        Column("value_name", TEXT, "The contrast group whose mean is patched in."),
        Column("value", FLOAT, "The patch value."),
        UNIT,
        Column("trial", INT32, "Number of the trial in its cell, from 0."),
        Column("seed", INT64, "Seed of its random numbers."),
        Column("response", TEXT, "What the model answered."),
        Column("tokens", pa.binary(), "Tokens of the answer, little-endian int32."),
        Column("n_tokens", INT32, "How many these are."),
        Column("finish", TEXT, "Why the answer ended: `eos`, or `length`."),
        CHOICE,
        Column("amount", FLOAT, "The amount that the parser read, if the scenario asks for one."),
        Column("parse_rule", TEXT, "The parser's rule that read the choice."),
        Column("edits_applied", INT32, "Positions at which the residual stream was edited."),
        Column("f_before", FLOAT, "The feature's activation before the edit, at the last prompt token."),
        Column("relative_delta", FLOAT, "Length of the edit's step against that of the residual vector."),
    ),
)

ACTIVATION_ROWS = TableSchema(
    "activation_rows",
    "Row n says what row n of the tensor `features` in `activations` is.",
    (
        Column("trial_id", INT64, "The trial."),
        Column("position_kind", TEXT, "`last`, the last prompt token, or `final`, the last token that was read."),
        Column("position", INT32, "Position of the token."),
        Column("token", INT32, "The token."),
    ),
)

COUNTS = (
    Column("n_a", INT32, "Trials of side a."),
    Column("k_a", INT32, "Those with the choice."),
    Column("n_b", INT32, "Trials of side b."),
    Column("k_b", INT32, "Those with the choice."),
)
_N_A, _K_A, _N_B, _K_B = COUNTS
_RATES = (
    _N_A,
    _K_A,
    Column("rate_a", FLOAT, "k_a / n_a."),
    _N_B,
    _K_B,
    Column("rate_b", FLOAT, "k_b / n_b."),
    Column("effect", FLOAT, "rate_a - rate_b; null where a side has no trials."),
    Column("ci_low", FLOAT, "Lower end of the effect's Newcombe interval at level 1 - alpha."),
    Column("ci_high", FLOAT, "Upper end of it."),
)
_P = Column("p", FLOAT, "Exact test of the two rates.")

MEASURED = TableSchema(
    "effects",
    "A row for each phase, feature, prompt, contrast and choice: the rates of sides a and b, and their difference.",
    (
        Column("phase", TEXT, "`discovery`, or `confirmation` on held-out seeds."),
        CANDIDATE,
        LAYER,
        FEATURE,
        PROMPT,
        Column("contrast", TEXT, "What is compared: `high_vs_low`, or either value against no edit; a against b."),
        CHOICE,
        *_RATES,
        Column("direction", INT8, "+1 or -1 where the test is one-sided, in a direction planned before; else null."),
        _P,
    ),
)
"""Table `effects` before its tests are sorted into families."""

_FAMILY = Column("family", TEXT, "`primary`, the one test that the screen predicts of a feature, or `secondary`.")
_Q = Column("q", FLOAT, "Benjamini-Hochberg within the family.")

EFFECTS = TableSchema(
    MEASURED.name,
    MEASURED.meaning,
    (
        *MEASURED.columns,
        replace(_FAMILY, meaning=f"{_FAMILY.meaning} In the confirmation phase, only what was discovered has one."),
        Column("predicted", FLOAT, "The exact effect that a primary test was chosen by."),
        _Q,
    ),
)

CONTROLS = TableSchema(
    "controls",
    "A row for each high-against-low test of the discovery phase: the same difference along the random direction (a: "
    "high value, b: low value), and by how much the feature's is larger.",
    (
        CANDIDATE,
        LAYER,
        FEATURE,
        PROMPT,
        CHOICE,
        _FAMILY,
        *COUNTS,
        Column("effect", FLOAT, "Effect of the random direction."),
        Column("ci_low", FLOAT, "Lower end of its Newcombe interval."),
        Column("ci_high", FLOAT, "Upper end of it."),
        Column("beyond", FLOAT, "Effect of the feature in its own direction, minus the size of the random one's."),
        Column("beyond_ci_low", FLOAT, "Lower end of the interval of `beyond` at level 1 - alpha."),
        Column("beyond_ci_high", FLOAT, "Upper end of it."),
        Column("p", FLOAT, "One-sided test of `beyond` > 0."),
        _Q,
    ),
)

REPEATED = ("n_a", "k_a", "rate_a", "n_b", "k_b", "rate_b", "effect", "ci_low", "ci_high", "direction", "p", "q")
"""Columns of table `effects` that table `verdict` holds of the confirmation phase, too."""

VERDICT = TableSchema(
    "verdict",
    "A row for each discovery.",
    (
        *(column for column in EFFECTS.columns if column.name != "phase"),
        Column("control_effect", FLOAT, "Effect of the random direction."),
        Column("beyond", FLOAT, "As in table `controls`, with interval, p and q."),
        Column("beyond_ci_low", FLOAT, "Lower end of its interval."),
        Column("beyond_ci_high", FLOAT, "Upper end of it."),
        Column("beyond_p", FLOAT, "Its p."),
        Column("beyond_q", FLOAT, "Its q."),
        Column("specific", TRUTH, "Shown to be more than a random direction does; null where none was sampled."),
        Column("label", TEXT, "The discovery in words."),
        *(
            Column(f"confirmation_{column.name}", column.type, f"`{column.name}` on held-out seeds.")
            for name in REPEATED
            for column in EFFECTS.columns
            if column.name == name
        ),
        Column("confirmed", TRUTH, "Held-out seeds show it again; null where it was not repeated."),
    ),
)

CONFIRM = TableSchema(
    "confirm",
    "A row for each discovered feature to repeat: those with a primary discovery, then the others, smallest q first.",
    (
        CANDIDATE,
        LAYER,
        FEATURE,
        Column("prompts", pa.list_(TEXT), "The prompts of its discoveries, on which it is repeated."),
    ),
)

WORDS = TableSchema(
    "words",
    "A row for each tested word of each feature and contrast: the shares of responses that hold it.",
    (
        CANDIDATE,
        LAYER,
        FEATURE,
        Column("contrast_name", TEXT, "The two conditions, such as `safe_with_risky_patch_vs_safe_baseline`; a and b."),
        Column("word", TEXT, "The word, in lower case."),
        *_RATES,
        _P,
        Column("q", FLOAT, "Benjamini-Hochberg over all words, features and contrasts."),
        Column("direction", TEXT, "`adds` or `removes`; null where the shares are equal."),
    ),
)

TABLES = (
    PROMPTS,
    FEATURES,
    CANDIDATES,
    screen(["<choice>"]),
    SURVIVORS,
    TRIALS,
    ACTIVATION_ROWS,
    EFFECTS,
    CONTROLS,
    VERDICT,
    CONFIRM,
    WORDS,
)


def page() -> str:
    """The page ``docs/tables/patching.md``."""
    return markdown("Tables of a patching study", TABLES)


if __name__ == "__main__":
    print(page(), end="")
