"""How much worse a model predicts without some dimensions, over all sequences, with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import stats

from tasks.outliers.tables import EFFECTS
from tasks.seeds import derive_seed

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 9_999
RESAMPLED_AT_ONCE = 2**22
"""Numbers drawn together, of all resamples."""


def effects(ablation: pa.Table, seed: int) -> pa.Table:
    """One row per condition, in order of appearance, from the table `ablation`; its first condition is the reference.

    With n tokens, nll and p of a sequence: perplexity = exp(sum nll / sum n) over sequences, top-1 probability =
    sum p / sum n. Draws of a random condition are averaged per sequence first, so its perplexity is the geometric mean
    of the draws'. Ratio and change are to the reference.

    Intervals (95 %): percentile bootstrap over sequences, which are drawn with replacement and stay paired with their
    own reference (Efron and Tibshirani 1993, chapter 13). The percentile interval, since it is defined for however few
    or similar sequences, and the same for a ratio as for its logarithm. Null with fewer than two sequences, for the
    reference, and where a number is not finite.
    """
    conditions = dict.fromkeys(ablation["condition"].to_pylist())
    reference, *_ = conditions
    tokens, nll_0, top1_0 = _per_sequence(ablation, reference)[:3]
    rows = []
    for name in conditions:
        _, nll, top1, n_dims, draws = _per_sequence(ablation, name)
        row = {
            "condition": name,
            "n_dims": n_dims,
            "draws": draws,
            "perplexity": _exp(_mean(nll, tokens)),
            "perplexity_ratio": _exp(_mean(nll - nll_0, tokens)),
            "top1_probability": float(_mean(top1, tokens)),
            "top1_change": float(_mean(top1 - top1_0, tokens)),
        }
        if name != reference:
            row |= _intervals(nll - nll_0, top1 - top1_0, tokens, derive_seed("ablation effects", seed, name))
        rows.append(
            {key: value if not isinstance(value, float) or np.isfinite(value) else None for key, value in row.items()}
        )
    return EFFECTS.from_rows(rows)


def _per_sequence(ablation: pa.Table, condition: str) -> tuple[Floats, Floats, Floats, int, int]:
    """(tokens, nll, top-1 probability) [sequences] each, means over draws; dimensions; draws."""
    rows = ablation.filter(pc.equal(ablation["condition"], condition))
    draws = len(set(rows["draw"].to_pylist()))
    rows = rows.sort_by([("draw", "ascending"), ("sequence", "ascending")])
    columns = [
        rows[name].to_numpy().astype(np.float64).reshape(draws, -1) for name in ("tokens", "nll", "top1_probability")
    ]
    tokens, nll, top1 = (column.mean(axis=0) for column in columns)
    return tokens, nll, top1, rows["n_dims"][0].as_py(), draws


def _mean(sums: Floats, tokens: Floats, axis: int = -1) -> Floats:
    """Per token; NaN without tokens."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums.sum(axis=axis) / tokens.sum(axis=axis)


def _exp(x: np.float64) -> float:
    """Infinite where it is too large."""
    with np.errstate(over="ignore"):
        return float(np.exp(x))


def _intervals(nll: Floats, top1: Floats, tokens: Floats, seed: int) -> dict[str, Any]:
    """Of differences to the reference, per sequence. Sequences that predict nothing are left out."""
    some = tokens > 0
    if some.sum() < 2 or not np.isfinite(nll).all():
        return {}

    def statistic(nll: Floats, top1: Floats, tokens: Floats, axis: int) -> Floats:
        return np.stack([_mean(nll, tokens, axis), _mean(top1, tokens, axis)])

    result = stats.bootstrap(
        (nll[some], top1[some], tokens[some]),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, RESAMPLED_AT_ONCE // int(some.sum())),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {
        "perplexity_ratio_low": _exp(result.low[0]),
        "perplexity_ratio_high": _exp(result.high[0]),
        "top1_change_low": float(result.low[1]),
        "top1_change_high": float(result.high[1]),
    }
