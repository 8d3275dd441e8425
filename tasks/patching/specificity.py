"""Is a feature's effect larger than that of a random direction? Effects are compared, not rates.

The random direction has an effect of its own, high against low value of the same edit. Its sign says nothing, since
the opposite direction was as likely to be drawn; so a feature's effect F must exceed the control's, R, in size. With
s the direction of F: s F > R and s F > -R, which together are s F > |R|, at the larger of their p-values
(intersection-union test: Berger 1982, Technometrics 24:295).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.patching.effects import Feature, count_outcomes, edited
from tasks.patching.families import q_values
from tasks.patching.spec import HIGH_VS_LOW
from tasks.patching.tables import CONTROLS
from tasks.stats.intervals import newcombe, rate
from tasks.stats.linear import linear_function


def compare_with_random(effects: pa.Table, trials: pa.Table, low: str, high: str, alpha: float) -> pa.Table:
    """Table `CONTROLS`: a row for each high-against-low test of `effects`, in their order.

    `beyond` is s F - |R|, with the interval of `linear_function` at level 1 - alpha; p tests H0: s F <= |R|; q is
    Benjamini-Hochberg over these tests of the same family. Null where a cell has no trials.
    """
    counts = count_outcomes(trials)
    effects = effects.filter(pc.equal(effects["contrast"], HIGH_VS_LOW))
    rows = effects.to_pylist()
    k, n = np.zeros((2, len(rows), 4), dtype=np.int64)  # feature at high and low value, random direction at both
    for i, row in enumerate(rows):
        feature = Feature(row["candidate"], row["layer"], row["feature"])
        control = [counts.get(edited("random", feature, row["prompt"], value), {}) for value in (high, low)]
        k[i] = row["k_a"], row["k_b"], *(cell.get(row["choice"], 0) for cell in control)
        n[i] = row["n_a"], row["n_b"], *(sum(cell.values()) for cell in control)

    own, random = (rate(k[:, i], n[:, i]) - rate(k[:, i + 1], n[:, i + 1]) for i in (0, 2))
    planned = pc.fill_null(effects["direction"], 0).to_numpy()
    side, other = (np.where(sign < 0, -1, 1) for sign in (np.where(planned, planned, np.nan_to_num(own)), random))
    beyond = linear_function(k, n, np.stack([side, -side, -other, other], axis=-1), alpha)
    interval = newcombe(k[:, 2], n[:, 2], k[:, 3], n[:, 3], alpha)
    columns: dict[str, Any] = {name: effects[name] for name in ("candidate", "layer", "feature", "prompt", "choice")}
    columns |= {"family": effects["family"], "n_a": n[:, 2], "k_a": k[:, 2], "n_b": n[:, 3], "k_b": k[:, 3]}
    columns |= {"effect": random, "ci_low": interval.low, "ci_high": interval.high}
    columns |= {"beyond": beyond.estimate, "beyond_ci_low": beyond.low, "beyond_ci_high": beyond.high, "p": beyond.p}
    columns["q"] = q_values(_column(beyond.p, pa.float64()), effects["family"])
    return CONTROLS.from_columns({field.name: _column(columns[field.name], field.type) for field in CONTROLS.arrow})


def _column(values: Any, type: pa.DataType) -> pa.Array | pa.ChunkedArray:
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values, type, from_pandas=True)
