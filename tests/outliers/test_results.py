"""The file of results: what reads the old layout reads it, it is small, and its numbers are exact."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.outliers import results
from tasks.outliers.results_layout import shortest
from tasks.outliers.tables import DIMENSIONS, MASSIVE_ACTIVATIONS, POINTS, SEQUENCES, SYSTEMATIC
from tests.outliers.large_file import Large
from tests.outliers.old_layout import old_results

CRITERIA = {"threshold": 6.0, "layer_share": 0.25, "position_share": 0.06, "first_position": True}
D = 24


def planted(sequences: int, length: int = 40) -> list[dict[str, torch.Tensor]]:
    """Activations with few outliers by chance, and dimensions that have them at many points and positions."""
    generator = torch.Generator().manual_seed(7)
    batches = []
    for i in range(sequences):
        batch = {}
        for name in (f"layer_{layer}_ln_{kind}" for layer in range(3) for kind in ("attn", "mlp")):
            x = torch.randn(1, length, D, generator=generator) * 1.8
            x[0, ::3, 5] = -9.5 - i
            x[0, 2 * i : 2 * i + 6, 11] += 8
            batch[name] = x
        batches.append(batch)
    return batches


def tables_of(old: dict) -> dict[str, pa.Table]:
    """The tables of a summary, from a result that stores every occurrence."""
    names = list(old["batch_results"][0]["outlier_info"]["layer_stats"])
    systematic, sequences, points = [], [], Counter()
    pooled: dict[int, list[tuple[int, dict]]] = {}
    for i, batch in enumerate(old["batch_results"]):
        info = batch["outlier_info"]
        for dim, occurrences in info["feature_outliers"].items():
            pooled.setdefault(dim, []).extend((i, occurrence) for occurrence in occurrences)
            points.update(names.index(occurrence["layer"]) for occurrence in occurrences)
        for record in batch["systematic_outliers"]:
            affected = sorted(names.index(name) for name in record["layers_affected"])
            values = [occurrence["value"] for occurrence in info["feature_outliers"][record["feature_dim"]]]
            systematic.append(
                {
                    "site": "norms",
                    "sequence": i,
                    "dim": record["feature_dim"],
                    "systematic": True,
                    "layer_share": record["layer_percentage"],
                    "position_share": record["seq_percentage"],
                    "max_magnitude": record["max_magnitude"],
                    "occurrences": record["total_occurrences"],
                    "negative": sum(value < 0 for value in values),
                    "points": affected,
                    "first_values": record["example_values"],
                    "max_over_rms": 9.1,
                    "max_over_median": float("inf"),
                }
            )
        sequences.append({"site": "norms", "sequence": i, "tokens": 40, "nan": 0, "inf": i})
    recurrence = Counter(record["feature_dim"] for record in old["all_systematic_outliers"])
    dimensions = [
        {
            "site": "norms",
            "positions": "all",
            "dim": dim,
            "systematic": dim == 5,
            "occurrences": len(occurrences),
            "max_magnitude": max(abs(occurrence["value"]) for _, occurrence in occurrences),
            "sequences": recurrence[dim],
            "recurrence": recurrence[dim] / len(old["batch_results"]),
        }
        for dim, occurrences in pooled.items()
    ]
    stats = [
        {"site": "norms", "point": i, "name": name, "layer": i // 2, "outliers": points[i], "max_magnitude": 9.5}
        for i, name in enumerate(names)
    ]
    other_site = systematic[0] | {"site": "residual", "dim": 3, "points": [0], "first_values": [7.0]}
    without_first = [row | {"positions": "without_first"} for row in dimensions]
    under_other_variant = systematic[0] | {"dim": 17, "systematic": False}
    return {
        "systematic": SYSTEMATIC.from_rows([*reversed(systematic), other_site, under_other_variant]),
        "sequences": SEQUENCES.from_rows(list(reversed(sequences))),
        "dimensions": DIMENSIONS.from_rows([*dimensions, *without_first]),
        "points": POINTS.from_rows(stats),
        "massive": MASSIVE_ACTIVATIONS.from_rows(
            [
                {
                    "site": "norms",
                    "point": p,
                    "dim": 5,
                    "occurrences": 2,
                    "at_first_position": 1,
                    "max_magnitude": 200 + p,
                }
                for p in (0, 3)
            ],
        ),
    }


def summary_of(names: list[str], sequences: int, length: int = 40) -> dict:
    return {
        "name": "tiny",
        "model": {"source": "example/model-1b"},
        "sequences": sequences,
        "text": {"location": "example/text", "length": length},
        "criteria": CRITERIA,
        "batch_size": 4,
        "headline": "all",
        "points": {"norms": names, "residual": ["layer_0_resid_post"]},
        "sites": {},
        "nearest_massive": {"norms": None, "residual": {"dim": 3, "ratio": None}},
    }


@pytest.fixture(scope="module")
def old() -> dict:
    return old_results(planted(3))


@pytest.fixture(scope="module")
def text(old: dict) -> str:
    names = list(old["batch_results"][0]["outlier_info"]["layer_stats"])
    return results.to_json(results.document(summary_of(names, 3), tables_of(old))).decode()


def test_every_key_and_record_of_the_old_layout(old: dict, text: str) -> None:
    new = json.loads(text)
    assert old["all_systematic_outliers"], "nothing was planted"
    assert old.keys() <= new.keys()
    for part in ("analysis_summary", "run_config"):
        assert old[part].keys() <= new[part].keys()
    ids = [batch["batch_id"] for batch in old["batch_results"] for _ in batch["systematic_outliers"]]
    assert len(new["all_systematic_outliers"]) == len(old["all_systematic_outliers"])
    for mine, theirs, batch_id in zip(new["all_systematic_outliers"], old["all_systematic_outliers"], ids, strict=True):
        assert mine["batch_id"] == batch_id
        assert [new["points"][i] for i in mine["layers_affected"]] == theirs["layers_affected"]
        for key in ("feature_dim", "layer_percentage", "seq_percentage", "total_occurrences"):
            assert mine[key] == theirs[key]
        assert np.float32(mine["max_magnitude"]) == np.float32(theirs["max_magnitude"])
        assert np.float32(mine["example_values"]).tolist() == theirs["example_values"]
    assert [f["feature_dim"] for f in new["top_features"]] == [f["feature_dim"] for f in old["top_features"]]
    assert [f["occurrences"] for f in new["top_features"]] == [f["occurrences"] for f in old["top_features"]]
    for mine, theirs in zip(new["batch_results"], old["batch_results"], strict=True):
        assert (theirs.keys() - {"outlier_info"}) | {"outlier_summary"} == mine.keys()
        assert [f["feature_dim"] for f in mine["systematic_outliers"]] == [
            f["feature_dim"] for f in theirs["systematic_outliers"]
        ]


def test_a_reader_of_the_old_layout_works_unchanged(old: dict, text: str) -> None:
    def read(r: dict) -> tuple:
        found = r["all_systematic_outliers"]
        return (
            {f["feature_dim"] for f in found},
            statistics.mean(f["layer_percentage"] for f in found),
            statistics.median(f["seq_percentage"] for f in found),
            round(max(f["max_magnitude"] for f in found), 4),
            sum(f["total_occurrences"] for f in found),
            [len(f["layers_affected"]) for f in found],
            [len(f["example_values"]) for f in found],
            r["analysis_summary"]["total_systematic_outliers"],
            r["analysis_summary"]["total_sequences"] / r["analysis_summary"]["total_batches"],
            [f["occurrences"] for f in r["top_features"]],
            [b["outlier_summary"]["threshold"] for b in r["batch_results"]] if "format" in r else [6.0, 6.0, 6.0],
        )

    assert read(json.loads(text)) == read(old)


def test_a_program_that_cuts_its_part_out_of_the_text_works(old: dict, text: str) -> None:
    found = re.search(r'"all_systematic_outliers":\s*\[(.*?)(?:\],\s*"batch_results")', text, re.DOTALL)
    assert len(json.loads(f"[{found[1]}]")) == len(old["all_systematic_outliers"])
    assert re.search(r'"model":\s*"([^"]+)"', text[:10_000])[1] == "example/model-1b"


def test_what_is_new(text: str) -> None:
    new = json.loads(text)
    unique = {
        name: dict(zip(new["unique_dimensions"]["feature_dim"], column, strict=True))
        for name, column in new["unique_dimensions"].items()
    }
    assert unique["systematic"][5] is True
    assert unique["batches"][5] == 3
    assert unique["recurrence"][5] == 1.0
    more = new["all_systematic_outliers_more"]
    by_pair = {(r["batch_id"], r["feature_dim"]): i for i, r in enumerate(new["all_systematic_outliers"])}
    record = new["all_systematic_outliers"][by_pair[2, 5]]
    assert more["negative_occurrences"][by_pair[2, 5]] == record["total_occurrences"]
    assert set(more["max_over_rms"]) == {9.1}
    assert set(more["max_over_median"]) == {None}
    assert new["nearest_massive_activation"] == {"norms": None, "residual": {"dim": 3, "ratio": None}}
    assert new["massive_activations"] == {
        "feature_dim": [5],
        "points": [2],
        "occurrences": [4],
        "at_first_position": [2],
        "max_magnitude": [203.0],
    }
    assert [b["outlier_summary"]["inf"] for b in new["batch_results"]] == [0, 1, 2]
    assert new["run_config"]["layers"] == [0, 1, 2]
    described = {line.partition(":")[0] for line in new["format"]["description"]}
    assert new.keys() - described == {"format"}


def test_the_residual_stream_where_norms_are_not_watched(old: dict) -> None:
    names = list(old["batch_results"][0]["outlier_info"]["layer_stats"])
    summary = summary_of(names, 3) | {"points": {"residual": ["layer_0_resid_post"]}}
    found = results.document(summary, tables_of(old))
    assert [record["feature_dim"] for record in found["all_systematic_outliers"]] == [3]
    assert found["points"] == ["layer_0_resid_post"]


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.to_json({"a": float("nan")})


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_numbers_of_32_bits_are_exact_and_short(value: float) -> None:
    written = json.dumps(shortest(np.float32(value)))
    assert np.float32(json.loads(written)) == np.float32(value)
    assert len(re.sub(r"e.*|\.0$|[-.]", "", written).strip("0")) <= 9


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_of_64_bits_lose_nothing(value: float) -> None:
    written = shortest(value)
    assert written == value or np.float32(written) == value


@pytest.mark.parametrize(("sequences", "dims"), [(1, 5000), (8, 625)])
def test_size_for_64_blocks_and_5000_pairs(sequences: int, dims: int) -> None:
    """Every pair affects all 128 points, at the least share of positions that makes it systematic."""
    large = Large(batches=sequences, dims=dims, points=128, positions=511, hits=31, d=5120)
    rng = np.random.default_rng(0)
    pairs = sequences * dims

    def singles(n: int) -> np.ndarray:
        return (6 + rng.exponential(40, n)).astype(np.float32)

    systematic = pa.table(
        {
            "site": pa.array(["norms"] * pairs),
            "sequence": np.repeat(np.arange(sequences, dtype=np.int32), dims),
            "dim": np.tile(np.arange(dims, dtype=np.int32), sequences),
            "systematic": np.ones(pairs, bool),
            "layer_share": np.ones(pairs),
            "position_share": np.full(pairs, large.hits / large.positions),
            "max_magnitude": singles(pairs),
            "occurrences": np.full(pairs, large.points * large.hits),
            "negative": rng.integers(0, 4000, pairs),
            "points": [list(range(128))] * pairs,
            "first_values": singles(5 * pairs).reshape(pairs, 5).tolist(),
            "max_over_rms": singles(pairs),
            "max_over_median": singles(pairs),
        }
    ).cast(pa.schema([f for f in SYSTEMATIC.arrow if f.name not in _NOT_READ]))
    dimensions = pa.table(
        {
            "site": pa.array(["norms"] * dims),
            "positions": pa.array(["all"] * dims),
            "dim": np.arange(dims),
            "systematic": np.ones(dims, bool),
            "layer_share": np.ones(dims),
            "position_share": np.full(dims, large.hits / large.positions),
            "mean_point_share": rng.random(dims),
            "max_magnitude": singles(dims),
            "occurrences": np.full(dims, large.points * large.hits * sequences),
            "negative": rng.integers(0, 4000 * sequences, dims),
            "relative_systematic": np.zeros(dims, bool),
            "relative_layer_share": np.full(dims, 55 / 128),
            "relative_position_share": rng.integers(0, 511, dims) / 511,
            "max_point_share": rng.random(dims),
            "relative_occurrences": rng.integers(0, 4000 * sequences, dims),
            "massive_occurrences": rng.integers(0, 100, dims),
            "max_over_rms": singles(dims),
            "max_over_median": singles(dims),
            "sequences": np.full(dims, sequences),
            "recurrence": np.ones(dims),
        }
    )
    rows = [{"site": "norms", "sequence": i, "tokens": 511, "nan": 0, "inf": 0} for i in range(sequences)]
    stats = [
        {"site": "norms", "point": i, "name": n, "layer": i // 2, "outliers": dims * 31, "max_magnitude": 99.5}
        for i, n in enumerate(large.names)
    ]
    tables = {
        "systematic": systematic,
        "dimensions": dimensions,
        "sequences": SEQUENCES.from_rows(rows),
        "points": POINTS.from_rows(stats),
        "massive": MASSIVE_ACTIVATIONS.arrow.empty_table(),
    }
    data = results.to_json(results.document(summary_of(large.names, sequences, 511), tables))
    assert len(json.loads(data)["all_systematic_outliers"]) == 5000
    assert len(data) < 5_000_000
    assert len(data) < 0.01 * large.size()


_NOT_READ = ("systematic_all", "systematic_without_first", "mean_point_share", "point_occurrences")


def test_the_size_of_a_large_old_file_is_that_of_the_naive_one(tmp_path: Path) -> None:
    """What `Large` writes is what the naive writer makes of activations with the same outliers."""
    large = Large(batches=2, dims=3, points=4, positions=32, hits=2, d=16)
    batches = []
    for _ in range(large.batches):
        x = torch.ones(1, large.positions, large.d)
        x[:, : large.hits, : large.dims] = 7.25
        batches.append(dict.fromkeys(large.names, x))
    naive = old_results(batches)
    naive["run_config"] = {"model": "example/large", "sequence_length": 32, "threshold": 6.0}
    for batch in naive["batch_results"]:
        batch["run_dir"] = f"results/run_{batch['batch_id']}"
        batch["timestamp"] = "2025-10-24T12:00:00"
    assert "".join(large.text()) == json.dumps(naive, indent=2)
    large.write(tmp_path / "large.json")
    assert large.size() == (tmp_path / "large.json").stat().st_size
