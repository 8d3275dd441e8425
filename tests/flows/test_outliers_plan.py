"""How an outlier study is cut into shards, and what its models are called."""

from __future__ import annotations

from typing import Any

import pytest

from flows.outliers_plan import (
    FEWEST_TOKENS_PER_SHARD,
    MOST_SHARDS,
    Examination,
    Examined,
    Failure,
    OutlierSettings,
    SweepModel,
    examinations,
    report_of,
    scan_ranges,
    study_name,
)
from tasks.artifacts.manifest import Manifest
from tasks.errors import BadInput
from tasks.models.spec import ModelRef
from tasks.spec import TaskSpec

STUDY = {"model_fingerprint": "f", "sequences": 100, "tokens": 100 * 2048}


def settings(**values: Any) -> OutlierSettings:
    return OutlierSettings.model_validate({"models": ["org/a"]} | values)


def one(**values: Any) -> Examination:
    return examinations(settings(**values))[0]


def finished(spec: TaskSpec) -> Manifest:
    return Manifest.of(spec, {}, {}, {})


@pytest.mark.parametrize("batch_size", [1, 3, 8, 1000])
@pytest.mark.parametrize(
    ("sequences", "length"), [(1, 8), (16, 512), (64, 2048), (1000, 2048), (999, 8192), (7, 10**6)]
)
def test_ranges_cover_every_sequence_once_in_whole_batches(sequences: int, length: int, batch_size: int) -> None:
    ranges = scan_ranges(sequences, sequences * length, batch_size)
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(sequences))
    assert all(start % batch_size == 0 for start, _ in ranges)
    assert all(stop % batch_size == 0 for _, stop in ranges[:-1])
    assert len(ranges) <= MOST_SHARDS


def test_a_small_study_is_one_shard_and_a_large_one_many() -> None:
    assert scan_ranges(16, 16 * 2048, 8) == [(0, 16)]
    assert len(scan_ranges(127, 127 * 2048, 1)) == 1
    assert len(scan_ranges(128, 128 * 2048, 1)) == 2
    assert len(scan_ranges(10**6, 10**6 * 512, 8)) == MOST_SHARDS
    ranges = scan_ranges(1000, 1000 * 2048, 8)
    assert min(stop - start for start, stop in ranges[:-1]) * 2048 >= FEWEST_TOKENS_PER_SHARD * 0.9


def test_a_few_long_sequences_are_not_cut_within_a_batch() -> None:
    assert scan_ranges(3, 3 * 10**6, 8) == [(0, 3)]


def test_a_source_alone_is_a_model() -> None:
    given = settings(models=["org/a", {"source": "b", "gpus": 2}])
    assert given.models == [SweepModel(source="org/a"), SweepModel(source="b", gpus=2)]
    assert given.models[1].ref == ModelRef(source="b")


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["embedded:smollm2-135m-instruct"], ["smollm2-135m-instruct"]),
        (["org/Model-1", "/data/mine/", "s3://b/x.gguf"], ["Model-1", "mine", "x"]),
        (["org/a", {"source": "org/a", "dtype": "bfloat16"}], ["a float32", "a bfloat16"]),
        (["org/a", {"source": "other/a", "name": "Other"}], ["a", "Other"]),
    ],
)
def test_models_are_named_after_their_source(models: list[Any], names: list[str]) -> None:
    found = examinations(settings(models=models))
    assert [one.name for one in found] == names
    assert len({one.folder for one in found}) == len(names)


@pytest.mark.parametrize(
    ("models", "says"),
    [
        (["org/a", "b", "org/a"], "models.2.source = 'org/a': is the same model as models.0"),
        ([{"source": "a", "batch_size": 1}, {"source": "a", "batch_size": 2}], "models.1.source = 'a': is the same"),
        (["org/a", "other/a"], "models.1.name = 'a float32': is as good as the name of models.0"),
        ([{"source": "x", "name": "A.1"}, "a-1"], "models.1.name = 'a-1': is as good as the name of models.0, 'A.1'"),
        (["/data/模型"], "models.0.name = '模型': has no letter or digit"),
    ],
)
def test_models_that_cannot_be_told_apart_are_refused(models: list[Any], says: str) -> None:
    with pytest.raises(BadInput) as refused:
        examinations(settings(models=models))
    assert str(refused.value).startswith(says)


def test_a_models_own_batch_size_wins() -> None:
    given = settings(models=["a", {"source": "b", "batch_size": 2}], batch_size=5)
    first, second = examinations(given)
    prepared = finished(first.prepare())
    assert {spec.params["batch_size"] for spec in first.scan(prepared, STUDY)} == {5}
    assert {spec.params["batch_size"] for spec in second.scan(prepared, STUDY)} == {2}


def hashes(examination: Examination) -> dict[str, list[str]]:
    prepared = finished(examination.prepare())
    scans = examination.scan(prepared, STUDY)
    summary = examination.summary(prepared, [finished(spec) for spec in scans])
    ablation = examination.ablation(prepared, finished(summary), STUDY)
    return {
        "prepare": [prepared.spec_hash],
        "scan": [spec.hash for spec in scans],
        "summary": [summary.hash],
        "ablation": [ablation.hash],
    }


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"seed": 1}, {"ablation"}),
        ({"ablation": {"largest": 3}}, {"ablation"}),
        ({"models": [{"source": "org/a", "name": "A"}]}, {"summary"}),
        ({"models": [{"source": "org/a", "gpus": 4}]}, set()),
        ({"models": [{"source": "org/a", "batch_size": 8}]}, set()),
        ({"sites": ["residual", "norms"]}, set()),
        ({"criteria": {"threshold": 5}}, {"scan", "summary"}),
        ({"batch_size": 4}, {"scan", "summary", "ablation"}),
        ({"text": {"length": 256}}, {"prepare", "summary"}),  # and the rest, once another text is prepared
        ({"models": [{"source": "org/a", "dtype": "bfloat16"}]}, {"prepare", "scan", "summary", "ablation"}),
    ],
)
def test_only_what_depends_on_a_setting_is_done_again(change: dict[str, Any], again: set[str]) -> None:
    """Manifests without outputs have one digest, so a change shows in the specs that name it themselves."""
    before, after = hashes(one()), hashes(one(**change))
    assert {stage for stage in before if before[stage] != after[stage]} == again


def test_what_there_is_to_check() -> None:
    def summary(occurrences: int, without_first: int) -> dict[str, Any]:
        variants = {"all": {"occurrences": occurrences}, "without_first": {"occurrences": without_first}}
        return {"headline": "all", "sites": {"norms": variants}}

    assert one().has_to_check(summary(3, 0))
    assert not one().has_to_check(summary(0, 3))
    assert not one().has_to_check({"headline": "all", "sites": {"residual": {}}})
    assert not one(ablation={"enabled": False}).has_to_check(summary(3, 3))


def test_the_report_gets_what_is_there() -> None:
    given = settings(models=["org/a", "org/b", "org/c"], text={"length": 256})
    a, b, c = examinations(given)
    prepared = finished(a.prepare())
    examined = [Examined(a, prepared, prepared), Examined(b, prepared, prepared, prepared)]
    spec = report_of(given, examined, [Failure(c, "scan", "too large")])
    assert spec.params["models"] == [
        {"name": "a", "source": "org/a", "folder": "a", "ablation": False},
        {"name": "b", "source": "org/b", "folder": "b", "ablation": True},
    ]
    assert spec.params["failures"] == [{"name": "c", "source": "org/c", "stage": "scan", "reason": "too large"}]
    assert spec.params["settings"]["text"]["length"] == 256
    assert "models" not in spec.params["settings"]
    assert {name: len(refs) for name, refs in spec.inputs.items()} == {"prepared": 2, "summary": 2, "ablation": 1}
    assert "ablation" not in report_of(given, examined[:1], []).inputs


@pytest.mark.parametrize(
    ("models", "name"),
    [
        ([SweepModel()], "outliers-smollm2-135m-instruct"),
        ([SweepModel(source="org/A.1")], "outliers-a-1"),
        ([SweepModel(source="org/a", name="First"), SweepModel(source="b")], "outliers-first-and-1-more"),
    ],
)
def test_studies_are_named_after_their_models(models: list[SweepModel], name: str) -> None:
    assert study_name(models) == name
