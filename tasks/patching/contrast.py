"""Task `patching.contrast`: which features differ between the two groups of prompts, and the bank of their edits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from tasks.context import ShardContext
from tasks.engines.bank import Bank
from tasks.patching.dictionaries import sae_cache
from tasks.patching.spec import ContrastParams, ContrastSettings
from tasks.patching.tables import CANDIDATES, FEATURES, PROMPTS
from tasks.sae.sae import SAE
from tasks.stats.fdr import benjamini_hochberg
from tasks.stats.means import Moments, cohens_d, welch

PROMPTS_PER_ENCODE = 256


def run(ctx: ShardContext) -> None:
    """Tables `features` (every feature of every layer) and `candidates`; tensors `bank`.

    Bank rows 0 to n - 1 are the candidates in order; row n + i is the random control of candidate i.
    """
    p: ContrastParams = ctx.params
    shards = ctx.inputs("activations")
    group = np.concatenate([PROMPTS.read(shard, ["group"])["group"].to_numpy() for shard in shards])
    residual = torch.cat([chunk["residual"] for shard in shards for chunk in shard.torch_tensors("residuals")])
    saes = sae_cache(ctx, p.saes)
    per_layer = []
    for i, layer in enumerate(p.saes.layers):
        sae = saes.get(layer)
        low, high = (_moments(sae, residual[torch.from_numpy(group == name), i]) for name in (p.low, p.high))
        per_layer.append(feature_table(layer, low, high, sae.convention))
        ctx.progress(i + 1, len(p.saes.layers), unit="layers")
    features = with_q_values(pa.concat_tables(per_layer))
    candidates = choose_candidates(features, p.settings)
    rows = zip(candidates["layer"].to_pylist(), candidates["feature"].to_pylist(), strict=True)
    bank = Bank.build(saes.get, rows).with_random_controls(ctx.seed)
    ctx.table(FEATURES.name, FEATURES.checked(features))
    ctx.table(CANDIDATES.name, candidates)
    ctx.tensors("bank", bank.tensors())
    ctx.count(features=len(features), candidates=len(candidates), layers=len(p.saes.layers))


@dataclass(frozen=True, eq=False)
class GroupMoments:
    """One group of prompts, elementwise over the features of a layer."""

    moments: Moments
    active: np.ndarray
    """Number of prompts at which the feature is above 0."""


def _moments(sae: SAE, residual: torch.Tensor) -> GroupMoments:
    """residual [n, d_model] -> moments over d_sae features; zeros of inactive features count."""
    moments, active = None, 0
    for block in residual.split(PROMPTS_PER_ENCODE):
        f = sae.encode(block.to(sae.device)).cpu().numpy()
        part = Moments.of(f)
        moments = part if moments is None else moments.merge(part)
        active = active + (f > 0).sum(axis=0)
    return GroupMoments(moments, active)


def feature_table(layer: int, low: GroupMoments, high: GroupMoments, unit: str) -> pa.Table:
    """One row per feature of a layer; t and d are high minus low."""
    test = welch(high.moments, low.moments)
    n = len(low.active)
    return pa.table(
        {
            "layer": pa.array(np.full(n, layer), pa.int32()),
            "feature": pa.array(np.arange(n), pa.int32()),
            "unit": pa.array([unit] * n, pa.string()),
            "n_low": pa.array(low.moments.count.astype(np.int64)),
            "n_high": pa.array(high.moments.count.astype(np.int64)),
            "mean_low": low.moments.mean,
            "mean_high": high.moments.mean,
            "sd_low": low.moments.sd,
            "sd_high": high.moments.sd,
            "active_low": pa.array(low.active, pa.int64()),
            "active_high": pa.array(high.active, pa.int64()),
            "t": _finite_or_null(test.t),
            "df": _finite_or_null(test.df),
            "p": _finite_or_null(test.p),
            "d": _finite_or_null(cohens_d(high.moments, low.moments)),
        }
    )


def with_q_values(features: pa.Table) -> pa.Table:
    """q over the whole family: every feature of every layer that could be tested."""
    p = features["p"].to_numpy()
    return features.append_column("q", _finite_or_null(benjamini_hochberg(p).q))


def choose_candidates(features: pa.Table, settings: ContrastSettings) -> pa.Table:
    """The features of largest |d| of each layer within the settings' limits, by layer, then by |d|.

    A feature whose d is undefined (constant in both groups) or whose two means agree has nothing to patch in.
    """
    keep = pc.is_valid(features["d"])
    keep = pc.and_(keep, pc.not_equal(features["mean_low"], features["mean_high"]))
    for column, limit in (("q", settings.max_q), ("p", settings.max_p)):
        if limit is not None:
            keep = pc.and_(keep, pc.less_equal(features[column], limit))
    if settings.min_abs_d is not None:
        keep = pc.and_(keep, pc.greater_equal(pc.abs(features["d"]), settings.min_abs_d))
    kept = features.filter(keep)
    order = np.lexsort((kept["feature"].to_numpy(), -np.abs(kept["d"].to_numpy()), kept["layer"].to_numpy()))
    layer = kept["layer"].to_numpy()[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(layer)) + 1]) if len(layer) else np.array([], int)
    rank = np.arange(len(layer)) - np.repeat(starts, np.diff(np.append(starts, len(layer))))
    chosen = kept.take(order[rank < settings.top_k_per_layer])
    n = len(chosen)
    return CANDIDATES.from_columns(
        {
            "candidate": np.arange(n),
            "layer": chosen["layer"],
            "feature": chosen["feature"],
            "unit": chosen["unit"],
            "value_low": chosen["mean_low"],
            "value_high": chosen["mean_high"],
            "d": chosen["d"],
            "p": chosen["p"],
            "q": chosen["q"],
            "bank_row": np.arange(n),
            "control_row": np.arange(n) + n,
        }
    )


def _finite_or_null(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))
