"""Shards from the prepared text to the tables of a study, on tiny models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tasks.models.batching import pad
from tasks.models.load import load
from tasks.models.points import norm_points, residual_points, watching
from tasks.models.spec import ModelRef
from tasks.outliers import run_scan
from tasks.outliers.scan import Scanner
from tasks.outliers.spec import SITES, Criteria
from tests.models.tiny import save_tiny_model
from tests.outliers.naive import Occurrence, nearest, occurrences
from tests.outliers.old_layout import find_outliers, systematic_outliers
from tests.outliers.studies import CRITERIA, prepared, scanned, some_text, summarized

DOCUMENTS = 18
BATCH = 2


class Study:
    """A study of one architecture, and every occurrence in it, found the slow way."""

    def __init__(self, folder, architecture: str) -> None:
        self.store = Store(folder / "store")
        self.model = ModelRef(source=str(save_tiny_model(folder / "model", architecture)))
        self.text = some_text(folder, DOCUMENTS)
        self.prepare = prepared(self.store, self.model, self.text)

    def scan(self, start: int = 0, stop: int = DOCUMENTS, **params):
        return scanned(self.store, self.model, self.prepare, start, stop, BATCH, **params)

    def summary(self, scans, **params) -> Shard:
        made = summarized(self.store, self.model, self.text, self.prepare, scans, BATCH, **params)
        return Shard.open(self.store, made.ref)

    def activations(self) -> dict[str, list[np.ndarray]]:
        """site -> [point, position, d] of each sequence, in the batches of the study."""
        loaded = load(self.model)
        rows = Shard.open(self.store, self.prepare.ref).table("sequences")["tokens"].to_pylist()
        sites = {"norms": norm_points(loaded.model, loaded.layout), "residual": residual_points(loaded.layout)}
        out: dict[str, list[np.ndarray]] = {site: [] for site in sites}
        for at in range(0, len(rows), BATCH):
            batch = pad(rows[at : at + BATCH], loaded.pad_id, side="right")
            for site, points in sites.items():
                seen: list[torch.Tensor] = []
                with watching(points, lambda i, x, seen=seen: seen.append(x.clone())), torch.no_grad():
                    loaded.layout.stack(**batch.inputs(loaded.layout.stack), use_cache=False)
                real = batch.attention_mask.bool()
                out[site] += [np.stack([x[row][real[row]].numpy() for x in seen]) for row in range(len(real))]
        return out


@pytest.fixture(scope="module", params=["llama", "qwen2_moe"])
def study(request, tmp_path_factory) -> Study:
    return Study(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def whole(study) -> Shard:
    """One shard's summary."""
    return study.summary([study.scan()])


@pytest.fixture(scope="module")
def kept(study) -> dict[str, list[np.ndarray]]:
    return study.activations()


@pytest.fixture(scope="module")
def found(kept) -> dict[str, list[Occurrence]]:
    """site -> every occurrence in any sequence."""
    return {site: [one for n, x in enumerate(kept[site]) for one in occurrences(x, n, CRITERIA)] for site in kept}


@pytest.mark.parametrize("edges", [[8], [2, 4, 16], list(range(2, DOCUMENTS, 2))], ids=len)
def test_any_cut_gives_the_same_bytes(study, whole, edges) -> None:
    scans = [study.scan(a, b) for a, b in zip([0, *edges], [*edges, DOCUMENTS], strict=True)]
    cut = study.summary(scans)
    for name, output in whole.manifest.outputs.items():
        assert [o.xxh3_128 for o in cut.manifest.outputs[name].objects] == [o.xxh3_128 for o in output.objects], name
    assert cut.counts == whole.counts


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("variant", ["all", "without_first"])
def test_dimensions_from_every_occurrence(whole, kept, found, site, variant) -> None:
    sequences = kept[site]
    counted = [one for one in found[site] if variant == "all" or one.position > 0]
    by_dim = {dim: [one for one in counted if one.dim == dim] for dim in {one.dim for one in counted}}
    points, skipped = len(sequences[0]), int(variant == "without_first")
    width = max(x.shape[1] for x in sequences) - skipped
    tokens = sum(x.shape[1] - skipped for x in sequences)
    rows = {
        row["dim"]: row
        for row in whole.table("dimensions").to_pylist()
        if (row["site"], row["positions"]) == (site, variant)
    }
    assert rows.keys() == by_dim.keys()
    in_single = [systematic(x, skipped) for x in sequences]
    for dim, row in rows.items():
        hits, relative = ([one for one in by_dim[dim] if one.criteria[c]] for c in (0, 1))
        layers = {one.point for one in hits}
        assert row["layer_share"] == len(layers) / points
        assert row["position_share"] == len({one.position for one in hits}) / width
        assert row["systematic"] == (
            row["layer_share"] >= CRITERIA.layer_share and row["position_share"] >= CRITERIA.position_share
        )
        shares = [sum(one.point == point for one in hits) / tokens for point in layers]
        assert row["mean_point_share"] == pytest.approx(np.mean(shares) if shares else 0)
        assert row["max_point_share"] == pytest.approx(max(shares, default=0))
        assert row["max_magnitude"] == max(largest(x[:, skipped:, dim]) for x in sequences)
        assert row["occurrences"] == len(hits) == row["positive"] + row["negative"]
        assert row["negative"] == sum(one.value < 0 for one in hits)
        assert row["relative_layer_share"] == len({one.point for one in relative}) / points
        assert row["relative_position_share"] == len({one.position for one in relative}) / width
        assert row["relative_occurrences"] == len(relative)
        assert row["sequences"] == sum(dim in dims for dims in in_single)
        assert row["recurrence"] == row["sequences"] / DOCUMENTS
        first = sorted(hits, key=lambda one: (one.point, one.sequence, one.position))
        assert row["first_values"] == [one.value for one in first[:5]]


def largest(x: np.ndarray) -> float:
    """The largest magnitude of all values, outliers or not."""
    return max((abs(float(value)) for value in x.reshape(-1)), default=0.0)


def systematic(x: np.ndarray, skipped: int) -> set[int]:
    """Systematic dimensions of one sequence, the old way."""
    if x.shape[1] == skipped:
        return set()
    info = find_outliers({str(i): torch.from_numpy(one[None, skipped:]) for i, one in enumerate(x)}, CRITERIA.threshold)
    records = systematic_outliers(info, layer_share=CRITERIA.layer_share, position_share=CRITERIA.position_share)
    return {record["feature_dim"] for record in records}


@pytest.mark.parametrize("first_position", [True, False])
def test_single_sequences_the_old_way(study, kept, first_position) -> None:
    criteria = CRITERIA.model_copy(update={"first_position": first_position})
    shard = study.summary([study.scan(criteria=criteria)], criteria=criteria)
    rows = {(row["sequence"], row["dim"]): row for row in shard.table("systematic").to_pylist() if row["systematic"]}
    skipped = int(not first_position)
    expected = {(n, dim) for n, x in enumerate(kept["norms"]) for dim in systematic(x, skipped)}
    assert rows.keys() == expected
    assert shard.counts["pairs"] == len(expected)
    document = json.loads(shard.file("final_analysis_results.json"))
    listed = {(record["batch_id"] - 1, record["feature_dim"]) for record in document["all_systematic_outliers"]}
    assert listed == expected


def test_points_and_their_dimensions(whole, kept, found) -> None:
    for row in whole.table("points").to_pylist():
        hits = [one for one in found[row["site"]] if one.point == row["point"] and one.criteria[0]]
        assert row["outliers"] == len(hits)
        assert row["outliers_without_first"] == sum(one.position > 0 for one in hits)
        assert row["max_magnitude"] == max(largest(x[row["point"]]) for x in kept[row["site"]])
        assert row["max_magnitude_without_first"] == max(largest(x[row["point"], 1:]) for x in kept[row["site"]])
        assert row["values"] == sum(x[0].size for x in kept[row["site"]])
    cells = {
        (row["dim"], row["point"]): row for row in whole.table("dimension_points").to_pylist() if row["site"] == "norms"
    }
    norms = [one for one in found["norms"] if one.criteria[0]]
    for (dim, point), row in list(cells.items())[::17]:
        mine = [one for one in norms if (one.dim, one.point) == (dim, point)]
        assert row["occurrences"] == len(mine)
        assert row["max_magnitude"] == max(largest(x[point, :, dim]) for x in kept["norms"])
        assert row["max_magnitude_without_first"] == max(largest(x[point, 1:, dim]) for x in kept["norms"])


def test_massive_activations_from_every_occurrence(study, kept) -> None:
    """With outliers that are larger than the largest massive activation of their dimension and point."""
    criteria = CRITERIA.model_copy(update={"massive_magnitude": 1.2, "massive_ratio": 3.5})
    shard = study.summary([study.scan(criteria=criteria)], criteria=criteria)
    hits = {
        site: [one for n, x in enumerate(kept[site]) for one in occurrences(x, n, criteria) if one.criteria[2]]
        for site in kept
    }
    rows = shard.table("massive").to_pylist()
    expected = {(site, one.point, one.dim) for site in hits for one in hits[site]}
    assert {(row["site"], row["point"], row["dim"]) for row in rows} == expected
    smaller = 0
    for row in rows:
        mine = [one for one in hits[row["site"]] if (one.point, one.dim) == (row["point"], row["dim"])]
        assert row["occurrences"] == len(mine)
        assert row["at_first_position"] == sum(one.position == 0 for one in mine)
        assert row["max_magnitude"] == max(abs(one.value) for one in mine)
        smaller += row["max_magnitude"] < max(largest(x[row["point"], :, row["dim"]]) for x in kept[row["site"]])
    assert smaller
    assert shard.json("summary")["nearest_massive"] == {"norms": None, "residual": None}


def test_what_comes_nearest_to_a_massive_activation(whole, kept) -> None:
    assert whole.table("massive").num_rows == 0
    for site, found in whole.json("summary")["nearest_massive"].items():
        by_point = nearest(dict(enumerate(kept[site])), slice(None), CRITERIA)
        point, best = max(enumerate(by_point), key=lambda one: one[1][0])
        _, value, median, dim, sequence, position = best
        names = whole.json("summary")["points"][site]
        assert found.pop("layer") == int(names[point].split("_")[1])
        assert found.pop("ratio") == pytest.approx(abs(value) / median)
        assert found == {
            "point": names[point],
            "dim": dim,
            "sequence": sequence,
            "position": position,
            "value": value,
            "median": median,
        }


def test_only_the_sites_that_were_asked_for(study) -> None:
    shard = study.summary([study.scan(sites=["residual"])], sites=["residual"])
    assert set(shard.table("points")["site"].to_pylist()) == {"residual"}
    assert shard.json("summary")["sites"].keys() == {"residual"}
    assert set(shard.table("systematic")["site"].to_pylist()) <= {"residual"}
    assert shard.counts["pairs"] == sum(shard.table("systematic")["systematic"].to_pylist())


def test_a_killed_scan_goes_on_from_its_last_chunk(study, monkeypatch, tmp_path) -> None:
    criteria = CRITERIA.model_copy(update={"threshold": 1.7})
    expected = study.scan(criteria=criteria)
    again = Store(tmp_path / "store")
    for path in study.store.list("shards/outliers.prepare"):
        again.write_bytes(path, study.store.read_bytes(path))
    scans: list[int] = []
    scan = Scanner.scan

    def killed_at_the_sixth(self, batch, sequences):
        scans.append(sequences[0])
        if len(scans) == 6:
            raise KeyboardInterrupt
        return scan(self, batch, sequences)

    monkeypatch.setattr(Scanner, "scan", killed_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        scanned(again, study.model, study.prepare, 0, DOCUMENTS, BATCH, criteria=criteria)
    finished = scanned(again, study.model, study.prepare, 0, DOCUMENTS, BATCH, criteria=criteria)
    assert finished.digest == expected.digest
    assert finished.run["reused_chunks"] == 1
    assert len(scans) == 6 + DOCUMENTS // BATCH - run_scan.BATCHES_PER_CHUNK


def test_a_batch_that_does_not_fit_is_halved(study, monkeypatch) -> None:
    scan = Scanner.scan
    sizes: list[int] = []

    def too_large(self, batch, sequences):
        sizes.append(len(sequences))
        if len(sequences) > 2:
            raise torch.OutOfMemoryError("no room")
        return scan(self, batch, sequences)

    monkeypatch.setattr(Scanner, "scan", too_large)
    criteria = Criteria(threshold=1.9)
    whole = scanned(study.store, study.model, study.prepare, 0, 8, 8, criteria=criteria)
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert whole.counts["sequences"] == 8
    assert "halved" in whole.run["notes"]["out_of_memory"]
    states = Shard.open(study.store, whole.ref)
    assert states.table("sequences")["sequence"].to_pylist()[:2] == [0, 1]


def test_another_model_than_prepared_is_refused(study, tmp_path) -> None:
    other = ModelRef(source=str(save_tiny_model(tmp_path / "other", "llama", seed=5)))
    with pytest.raises(BadInput, match="the model changed"):
        scanned(study.store, other, study.prepare, 0, 4)
