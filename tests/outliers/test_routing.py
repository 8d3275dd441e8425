"""Counts of a mixture's routing against one token at a time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tasks.models.batching import pad
from tasks.models.experts import moe_blocks, routing
from tasks.models.layout import Layout
from tasks.models.points import norm_points, watching
from tasks.outliers.routing import FIELDS, SHARED, experts_table
from tasks.outliers.scan import Scanner
from tasks.outliers.spec import SITES, Criteria
from tests.models.tiny import EXPERT_MODELS, tiny_model

CRITERIA = Criteria(threshold=1.2)


@pytest.fixture(params=EXPERT_MODELS)
def loaded(request) -> SimpleNamespace:
    model = tiny_model(request.param)
    return SimpleNamespace(model=model, layout=Layout.of(model), device=torch.device("cpu"), pad_id=0)


def one_by_one(loaded, batch) -> dict[tuple[int, int], dict[str, float]]:
    """(layer, expert) -> counts, from what each token was sent to."""
    points = norm_points(loaded.model, loaded.layout)
    entering, seen = {}, []
    with (
        torch.no_grad(),
        watching(points, lambda i, x: entering.update({points[i].layer: x.flatten(0, 1)})),  # the FFN's comes last
        routing(moe_blocks(loaded.layout), seen.append),
    ):
        loaded.layout.stack(**batch.inputs(loaded.layout.stack), use_cache=False)
    counts: dict[tuple[int, int], dict[str, float]] = {}

    def add(layer: int, expert: int, weight: float, before: torch.Tensor, after: torch.Tensor) -> None:
        mine = counts.setdefault((layer, expert), dict.fromkeys(FIELDS, 0))
        hits_in, hits_out = (int((x.abs() >= CRITERIA.threshold).sum()) for x in (before, after))
        found = (1, weight, hits_in > 0, hits_in, hits_out > 0, hits_out)
        counts[layer, expert] = {name: mine[name] + value for name, value in zip(FIELDS, found, strict=True)}

    for one in seen:
        for token in batch.attention_mask.reshape(-1).nonzero()[:, 0].tolist():
            before = entering[one.layer][token]
            for expert, weight in zip(one.experts[token].tolist(), one.weights[token].tolist(), strict=True):
                add(one.layer, expert, weight, before, one.routed_output[token])
            if one.shared_output is not None:
                add(one.layer, SHARED, 0.0, before, one.shared_output[token])
    return counts


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_mixture(loaded, side) -> None:
    batches = [pad([[5, 6, 7, 8, 9], [10, 11]], 0, side=side), pad([[12, 13, 14]], 0, side=side)]
    scanner = Scanner(loaded, SITES, CRITERIA)
    expected: dict[tuple[int, int], dict[str, float]] = {}
    for number, batch in enumerate(batches):
        scanner.scan(batch, [2 * number + row for row in range(len(batch.input_ids))])
        for key, found in one_by_one(loaded, batch).items():
            known = expected.get(key, dict.fromkeys(FIELDS, 0))
            expected[key] = {name: known[name] + found[name] for name in FIELDS}
    arrays = scanner.routing.arrays()
    table = experts_table(arrays["layers"], arrays["n_experts"], int(arrays["per_token"][0]), arrays["counts"], True)
    rows = {(row["layer"], row["expert"]): row for row in table.to_pylist()}
    assert expected.keys() <= rows.keys()
    tokens = 5 + 2 + 3
    for key, row in rows.items():
        mine = expected.get(key, dict.fromkeys(FIELDS, 0))
        for name in FIELDS:
            if name != "weight":
                assert row[name] == mine[name], (key, name)
        assert row["share"] == mine["tokens"] / tokens
        assert row["kind"] == ("shared" if key[1] == SHARED else "routed")
        if row["kind"] == "routed" and mine["tokens"]:
            assert row["mean_weight"] == pytest.approx(mine["weight"] / mine["tokens"], abs=1e-6)
            assert row["outlier_rate_in"] == mine["tokens_with_outlier_in"] / mine["tokens"]
    assert any(row["outliers_in"] for row in rows.values())
    assert any(row["outliers_out"] for row in rows.values())
    for layer in set(table["layer"].to_pylist()):
        routed = [row for row in rows.values() if row["layer"] == layer and row["kind"] == "routed"]
        assert sum(row["tokens"] for row in routed) == tokens * int(arrays["per_token"][0])


def test_without_the_norms_what_enters_is_unknown(loaded) -> None:
    scanner = Scanner(loaded, ["residual"], CRITERIA)
    scanner.scan(pad([[5, 6, 7]], 0), [0])
    arrays = scanner.routing.arrays()
    table = experts_table(arrays["layers"], arrays["n_experts"], int(arrays["per_token"][0]), arrays["counts"], False)
    assert set(table["outlier_rate_in"].to_pylist()) == {None}
    assert np.sum(table["tokens"].to_numpy()) > 0
