"""A watched forward pass against activations that are kept and looked at one by one, for every architecture."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tasks.models.batching import pad
from tasks.models.layout import Layout
from tasks.models.points import watching
from tasks.outliers.merge import merge_parts
from tasks.outliers.scan import Scanner
from tasks.outliers.spec import SITES, Criteria
from tests.models.tiny import ALL_ARCHITECTURES, tiny_model
from tests.outliers.naive import occurrences, summary
from tests.outliers.old_layout import find_outliers, systematic_outliers
from tests.outliers.states import assert_same_bits
from tests.outliers.test_reductions import assert_equals_reference

CRITERIA = Criteria(threshold=1.8, layer_share=0.5, position_share=0.3, relative_threshold=2.0, massive_ratio=4.0)
CRITERIA = CRITERIA.model_copy(update={"massive_magnitude": 2.5})


def loaded_tiny(name: str) -> SimpleNamespace:
    model = tiny_model(name)
    return SimpleNamespace(model=model, layout=Layout.of(model), device=torch.device("cpu"), pad_id=0)


def texts(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 120, n).tolist() for n in rng.integers(1, 28, count)]


def kept(scanner: Scanner, batch) -> dict[str, list[np.ndarray]]:
    """site -> activations [point, position, d] of each sequence of the batch, without its pads."""
    out = {}
    real = batch.attention_mask.bool()
    for site, points in scanner.points.items():
        seen: list[torch.Tensor] = []
        with watching(points, lambda i, x, seen=seen: seen.append(x.clone())), torch.no_grad():
            stack = scanner.loaded.layout.stack
            stack(**batch.inputs(stack), use_cache=False)
        out[site] = [np.stack([x[row][real[row]].float().numpy() for x in seen]) for row in range(len(batch.input_ids))]
    return out


def assert_classified_like_the_old_way(scanner, site, result, sequences, numbers) -> None:
    """Each sequence is a batch of its own there."""
    names = [point.name for point in scanner.points[site]]
    expected = {}
    for row, x in enumerate(sequences):
        activations = {name: torch.from_numpy(x[i])[None] for i, name in enumerate(names)}
        info = find_outliers(activations, scanner.criteria.threshold)
        records = systematic_outliers(
            info, layer_share=scanner.criteria.layer_share, position_share=scanner.criteria.position_share
        )
        assert result.systematic["all"][row] == len(records)
        expected |= {(row, record["feature_dim"]): record for record in records}
    if result.pairs is None:
        return
    found = result.pairs
    mine = {(int(found.row[i]), int(found.dim[i])): i for i in range(len(found.row)) if found.systematic["all"][i]}
    assert mine.keys() == expected.keys()
    for pair, record in expected.items():
        i = mine[pair]
        assert found.layer_share[i].item() == record["layer_percentage"]
        assert found.position_share[i].item() == record["seq_percentage"]
        assert found.max_magnitude[i].item() == record["max_magnitude"]
        assert found.occurrences[i].sum().item() == record["total_occurrences"]
        assert sorted(names[p] for p in found.occurrences[i].nonzero()[:, 0]) == record["layers_affected"]
        assert found.first_values[i, : found.filled[i]].tolist() == record["example_values"]


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_every_architecture(name) -> None:
    loaded = loaded_tiny(name)
    scanner = Scanner(loaded, SITES, CRITERIA)
    sequences = texts(7)
    for side, size in (("right", 3), ("left", 4)):
        states = {site: {"first": [], "rest": []} for site in SITES}
        found = {site: [] for site in SITES}
        for at in range(0, len(sequences), size):
            numbers = list(range(at, min(at + size, len(sequences))))
            batch = pad([sequences[n] for n in numbers], loaded.pad_id, side=side)
            activations = kept(scanner, batch)
            for site, result in scanner.scan(batch, numbers).items():
                assert_classified_like_the_old_way(scanner, site, result, activations[site], numbers)
                for part in ("first", "rest"):
                    states[site][part].append(getattr(result.state, part))
                for n, x in zip(numbers, activations[site], strict=True):
                    found[site] += occurrences(x, n, CRITERIA)
        for site in SITES:
            points = len(scanner.points[site])
            assert any(one.position for one in found[site])
            for part, is_first in (("first", True), ("rest", False)):
                reference = summary([one for one in found[site] if (one.position == 0) == is_first], points)
                assert_equals_reference(merge_parts(states[site][part]), reference)


def test_pads_and_their_side_change_nothing() -> None:
    """Of one sequence: alone, or beside a longer one. The model itself rounds alike in float64."""
    loaded = loaded_tiny("llama")
    loaded.model.double()
    scanner = Scanner(loaded, SITES, CRITERIA)
    short, long = texts(1)[0][:9], texts(2, seed=1)[1] * 3
    alone = scanner.scan(pad([short], 0), [0])
    for side in ("left", "right"):
        both = scanner.scan(pad([short, long], 0, side=side), [0, 1])
        only_long = scanner.scan(pad([long], 0), [1])
        for site in SITES:
            merged = merge_parts([alone[site].state.rest, only_long[site].state.rest])
            assert_same_bits(merged, both[site].state.rest)
            np.testing.assert_array_equal(alone[site].systematic["all"][0], both[site].systematic["all"][0])


def test_broken_values_are_counted() -> None:
    loaded = loaded_tiny("llama")
    with torch.no_grad():
        loaded.model.model.layers[1].input_layernorm.weight[5] = float("inf")
        loaded.model.model.layers[1].post_attention_layernorm.weight[7] = float("nan")
    scanner = Scanner(loaded, SITES, CRITERIA)
    batch = pad([[5, 6, 7], [8, 9]], 0)
    result = scanner.scan(batch, [0, 1])
    activations = kept(scanner, batch)
    for site in SITES:
        by_point = np.concatenate([x.reshape(x.shape[0], -1) for x in activations[site]], axis=1)
        np.testing.assert_array_equal(result[site].state.nan, np.isnan(by_point).sum(1))
        np.testing.assert_array_equal(result[site].state.inf, np.isinf(by_point).sum(1))
        assert result[site].state.nan.sum() > 0


def test_an_out_of_range_first_position_alone() -> None:
    """A sequence of one token has a first position and nothing else."""
    scanner = Scanner(loaded_tiny("llama"), SITES, CRITERIA)
    for result in scanner.scan(pad([[5], [6]], 0), [0, 1]).values():
        assert result.state.rest.tokens == 0
        assert len(result.state.rest.dims) == 0
        assert result.systematic["without_first"].tolist() == [0, 0]
        assert result.systematic["all"].sum() > 0
