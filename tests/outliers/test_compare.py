"""Two result files, of either layout: the same, or in what they differ."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from tasks.outliers.__main__ import main
from tasks.outliers.compare import Comparison, compare
from tasks.outliers.convert import convert, write
from tasks.outliers.old.tally import Shares
from tests.outliers.large_file import Large
from tests.outliers.old_layout import write_old_results

SHARES = Shares(0.25, 0.06)


def activations(seed: int, extra: float = 0.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in (f"layer_{i}_ln_{kind}" for i in range(6) for kind in ("attn", "mlp")):
        found[name] = torch.randn(1, 32, 12, generator=generator) * 2.4
        found[name][:, :4, 3] += 9 + extra
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """old.json, new.json (converted from it) and other.json (of other activations)."""
    folder = tmp_path_factory.mktemp("compare")
    write_old_results(folder / "old.json", [activations(seed) for seed in range(3)])
    write_old_results(folder / "other.json", [activations(seed) for seed in (0, 1, 7)])
    convert_file(folder / "old.json", folder / "new.json")
    return folder


def convert_file(old: Path, new: Path) -> None:
    document, _ = convert(str(old), SHARES, lambda line: None)
    write(document, str(new))


def compared(old: Path, new: Path, limit: float = 1.0) -> Comparison:
    return compare(str(old), str(new), lambda line: None, limit=limit)


@pytest.mark.parametrize(("old", "new"), [("old", "new"), ("new", "old"), ("old", "old"), ("new", "new")])
def test_the_same_in_any_layout(folder: Path, old: str, new: str) -> None:
    found = compared(folder / f"{old}.json", folder / f"{new}.json")
    assert found.same
    assert found.old.count == found.new.count > 3
    assert (found.old.layout, found.new.layout) == (old, new)
    assert (found.size_ratio is not None) is ((old, new) == ("old", "new"))


def test_the_checks_of_the_old_code_hold(folder: Path) -> None:
    """As its readers do them, on the whole files."""
    old, new = (json.loads((folder / f"{name}.json").read_text()) for name in ("old", "new"))
    features = [{f["feature_dim"] for f in results["all_systematic_outliers"]} for results in (old, new)]
    found = compared(folder / "old.json", folder / "new.json")
    assert features == [found.old.dims, found.new.dims]
    assert features[0] == features[1]
    assert found.size_ratio == (folder / "new.json").stat().st_size / (folder / "old.json").stat().st_size


def test_other_activations_differ(folder: Path) -> None:
    found = compared(folder / "old.json", folder / "other.json")
    assert not found.same
    assert {batch for (batch, _, _), *_ in found.differences} == {3}


CHANGES = {
    "layer_percentage": 0.5,
    "seq_percentage": 0.5,
    "max_magnitude": 99.5,
    "total_occurrences": 1,
    "layers_affected": [0, 1],
    "example_values": [6.0],
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_counts(folder: Path, tmp_path: Path, field: str, capsys: pytest.CaptureFixture[str]) -> None:
    new = json.loads((folder / "new.json").read_text())
    record = new["all_systematic_outliers"][2]
    record[field] = CHANGES[field]
    (tmp_path / "changed.json").write_text(json.dumps(new))
    assert main(["compare", str(folder / "old.json"), str(tmp_path / "changed.json"), "--size-ratio", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("records: 1 differences")
    assert lines[place + 1].split() == ["batch", "dimension", "field", "OLD", "NEW"]
    assert lines[place + 2].split()[:3] == [str(record["batch_id"]), str(record["feature_dim"]), field]
    assert "dimensions: the same" in lines


def test_a_number_of_32_bits_may_be_written_short(folder: Path, tmp_path: Path) -> None:
    new = json.loads((folder / "new.json").read_text())
    old = json.loads((folder / "old.json").read_text())
    assert [r["max_magnitude"] for r in new["all_systematic_outliers"]] != [
        r["max_magnitude"] for r in old["all_systematic_outliers"]
    ]
    new["all_systematic_outliers"][0]["max_magnitude"] += 1e-6  # the next number of 32 bits
    (tmp_path / "changed.json").write_text(json.dumps(new))
    assert compared(folder / "old.json", tmp_path / "changed.json").count == 1


def test_a_missing_dimension_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = json.loads((folder / "new.json").read_text())
    gone = [record for record in new["all_systematic_outliers"] if record["feature_dim"] == 3]
    new["all_systematic_outliers"] = [r for r in new["all_systematic_outliers"] if r["feature_dim"] != 3]
    (tmp_path / "changed.json").write_text(json.dumps(new))
    assert main(["compare", str(folder / "old.json"), str(tmp_path / "changed.json")]) == 1
    out = capsys.readouterr().out
    assert "dimensions: not the same\n  in OLD only: 3\n" in out
    assert f"records: {len(gone)} differences" in out


def test_many_differences_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Large(batches=2, dims=20, points=4, positions=16, hits=2).write(tmp_path / "a.json")
    Large(batches=2, dims=20, points=8, positions=16, hits=2).write(tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    out = capsys.readouterr().out
    assert "records: 80 differences" in out  # occurrences and points of 40 records
    assert "  and 60 more" in out
    assert len(out.splitlines()) < 30


def test_the_size_counts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(folder / "old.json"), str(folder / "new.json")]) == 1
    assert "not below 0.01" in capsys.readouterr().out
    Large(batches=2, dims=60, points=16, positions=128, hits=16).write(tmp_path / "old.json")
    convert_file(tmp_path / "old.json", tmp_path / "new.json")
    assert main(["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    assert "below 0.01" in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_truncated_file_and_what_came_of_it(folder: Path, tmp_path: Path, share: float) -> None:
    """The same, in what could be read; and the whole file has all of it too, whatever batches are not known."""
    text = (folder / "old.json").read_bytes()
    cut = tmp_path / "cut.json"
    cut.write_bytes(text[: int(len(text) * share)])
    convert_file(cut, tmp_path / "converted.json")
    found = compared(cut, tmp_path / "converted.json")
    assert found.same
    assert "where the text ends" in found.old.problems[0]
    assert compared(folder / "old.json", tmp_path / "converted.json").same
    assert compared(tmp_path / "converted.json", folder / "old.json").same


def test_a_batch_that_is_not_known_is_still_compared(folder: Path, tmp_path: Path) -> None:
    """Records without a batch are held against those of the other file, in order."""
    new = json.loads((folder / "new.json").read_text())
    changed = copy.deepcopy(new)
    for record in changed["all_systematic_outliers"]:
        record["batch_id"] = None
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    assert compared(folder / "old.json", tmp_path / "changed.json").same
    assert compared(tmp_path / "changed.json", tmp_path / "changed.json").same
    changed["all_systematic_outliers"][-1]["total_occurrences"] += 1
    (tmp_path / "other.json").write_text(json.dumps(changed))
    assert compared(folder / "old.json", tmp_path / "other.json").count == 1
    assert compared(tmp_path / "changed.json", tmp_path / "other.json").count == 1


def test_bad_input(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "else.json").write_text('{"something": "else"}')
    assert main(["compare", str(folder / "old.json"), str(tmp_path / "none.json")]) == 2
    assert "NEW = " in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "else.json"), str(folder / "new.json")]) == 2
    assert "OLD = " in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["compare", str(folder / "old.json"), str(folder / "new.json"), "--size-ratio", "2"])
    assert stopped.value.code == 2
    assert "'2' is no number above 0, up to 1" in capsys.readouterr().err
