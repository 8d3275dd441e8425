"""Old result files in the new layout: the same classification, and of damaged files all that is sound."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from tasks.errors import BadInput
from tasks.outliers.__main__ import main
from tasks.outliers.convert import convert, default_target
from tasks.outliers.old.said import Said
from tasks.outliers.old.tally import Shares
from tasks.outliers.results_layout import to_json
from tests.outliers.large_file import Large
from tests.outliers.old_layout import old_results, write_old_results

SHARES = Shares(0.25, 0.06)
BATCHES = 4


def batch(seed: int, rows: int = 1, length: int = 32, d: int = 12, layers: int = 12) -> dict[str, torch.Tensor]:
    """Activations in bfloat16 with outliers by chance, some dimensions of which are systematic."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in (f"layer_{i}_ln_{kind}" for i in range(layers // 2) for kind in ("attn", "mlp")):
        x = torch.randn(rows, length, d, generator=generator) * 2.3
        x[:, : 2 + seed % 3, 3] += 9
        found[name] = x.bfloat16()
    return found


@pytest.fixture(scope="module")
def old() -> dict:
    return old_results([batch(seed) for seed in range(BATCHES)])


@pytest.fixture(scope="module")
def text(old: dict) -> bytes:
    return json.dumps(old, indent=2).encode()


def convert_text(tmp_path: Path, text: bytes, shares: Shares = SHARES) -> tuple[dict, Said]:
    """Convert a file that holds `text`, and check what holds for every conversion."""
    path = tmp_path / "old.json"
    path.write_bytes(text)
    document, said = convert(str(path), shares, lambda line: None)
    new = json.loads(to_json(document))
    assert new["converted_from"]["bytes"] == len(text)
    assert new["converted_from"]["sha256"] == hashlib.sha256(text).hexdigest()
    assert new["converted_from"]["complete"] is (not said.lost)
    assert new["converted_from"]["lost"] == said.lost
    assert new["analysis_summary"]["total_systematic_outliers"] == len(new["all_systematic_outliers"])
    assert len(new["all_systematic_outliers_more"]["negative_occurrences"]) == len(new["all_systematic_outliers"])
    for entry in new["batch_results"]:
        records = [r["feature_dim"] for r in new["all_systematic_outliers"] if r["batch_id"] == entry["batch_id"]]
        assert [f["feature_dim"] for f in entry["systematic_outliers"]] == records
    return new, said


def old_records(new: dict, batch_id: int | None = None) -> list[dict]:
    """The records of a new file as the old layout has them, of a batch or of all."""
    found = []
    for record in new["all_systematic_outliers"]:
        if batch_id in (None, record["batch_id"]):
            record = {key: value for key, value in record.items() if key != "batch_id"}
            record["layers_affected"] = sorted(new["points"][i] for i in record["layers_affected"])
            record["max_magnitude"] = float(np.float32(record["max_magnitude"]))
            record["example_values"] = np.float32(record["example_values"]).tolist()
            found.append(record)
    return found


def origins(new: dict) -> dict[int, str]:
    return {entry["batch_id"]: entry["records_from"] for entry in new["batch_results"]}


@pytest.mark.parametrize("threshold", [6.0, 7.5])
@pytest.mark.parametrize(("layer_share", "position_share"), [(0.25, 0.06), (0.5, 0.125), (1.0, 0.03125)])
@pytest.mark.parametrize("rows", [1, 3])
def test_classifies_identically(
    tmp_path: Path, threshold: float, layer_share: float, position_share: float, rows: int
) -> None:
    criteria = {"threshold": threshold, "layer_share": layer_share, "position_share": position_share}
    old = old_results([batch(seed, rows) for seed in range(3)], **criteria)
    assert old["all_systematic_outliers"], "nothing is systematic"
    new, said = convert_text(tmp_path, json.dumps(old, indent=2).encode(), Shares(layer_share, position_share))
    assert (said.lost, said.differing, said.notes) == ([], [], [])
    assert old_records(new) == old["all_systematic_outliers"]
    assert set(origins(new).values()) == {"occurrences"}
    for key, value in old["run_config"].items():
        assert new["run_config"][key] == value
    assert new["run_config"]["layer_share"] == layer_share
    assert new["points"] == list(batch(0))


def test_boundary_values_count(tmp_path: Path) -> None:
    """|x| = 6, a quarter of the layers, 6 % of the positions: exactly."""
    activations = {f"layer_{i}_ln_attn": torch.zeros(1, 50, 3) for i in range(4)}
    activations["layer_1_ln_attn"][0, [4, 40, 41], 1] = torch.tensor([6.0, -6.0, 6.0])
    activations["layer_2_ln_attn"][0, [4, 40], 2] = -6.0
    new, said = convert_text(tmp_path, json.dumps(old_results([activations]), indent=2).encode())
    assert not said.differing
    [record] = new["all_systematic_outliers"]
    assert (record["feature_dim"], record["layer_percentage"], record["seq_percentage"]) == (1, 0.25, 0.06)
    assert new["all_systematic_outliers_more"]["negative_occurrences"] == [1]


def test_numbers_over_all_batches(tmp_path: Path, old: dict, text: bytes) -> None:
    new, _ = convert_text(tmp_path, text)
    columns = new["unique_dimensions"]
    dim = columns["feature_dim"].index(3)
    everything = [
        occurrence | {"batch": i}
        for i, entry in enumerate(old["batch_results"])
        for occurrence in entry["outlier_info"]["feature_outliers"][3]
    ]
    assert columns["total_occurrences"][dim] == len(everything)
    assert columns["negative_occurrences"][dim] == sum(o["value"] < 0 for o in everything)
    assert columns["seq_percentage"][dim] == len({o["seq_pos"] for o in everything}) / 32
    layers = {o["layer"] for o in everything}
    assert columns["layer_percentage"][dim] == len(layers) / 12
    by_layer = [sum(o["layer"] == layer for o in everything) / (32 * BATCHES) for layer in layers]
    assert columns["mean_point_percentage"][dim] == pytest.approx(np.mean(by_layer))
    assert columns["batches"][dim] == sum(f["feature_dim"] == 3 for f in old["all_systematic_outliers"])
    stats = old["batch_results"][1]["outlier_info"]["layer_stats"]
    assert new["batch_results"][1]["outlier_summary"]["layer_stats"] == {
        "num_outliers": [of_layer["num_outliers"] for of_layer in stats.values()],
        "max_magnitude": [of_layer["max_magnitude"] for of_layer in stats.values()],
        "shape": [1, 32, 12],
    }


def test_cut_anywhere(tmp_path: Path, old: dict, text: bytes) -> None:
    """At every kind of place: batches before the cut are as they were, those behind it come from the lists."""
    rng = np.random.default_rng(5)
    ends = [match.end() for match in re.finditer(rb'"timestamp": "[^"]*"\n    \}', text)]
    header = text.index(b'"batch_results"')
    cuts = {*rng.integers(header, len(text) - 3, 150).tolist(), *(end + by for end in ends for by in (-1, 0, 1, 7))}
    cuts |= {text.index(b'"seq_pos": 1', header) + by for by in range(14)}  # in a key, a number, between them
    seen = set()
    for cut in sorted(cut for cut in cuts if cut < len(text)):
        new, said = convert_text(tmp_path, text[:cut])
        whole = sum(end <= cut for end in ends)
        assert [origins(new)[i + 1] for i in range(whole)] == ["occurrences"] * whole
        assert f"not read after byte {cut}, where the text ends" in said.lost[0]
        assert old_records(new)[: len(old["all_systematic_outliers"])] == old["all_systematic_outliers"]
        if whole == BATCHES:
            continue
        assert len(said.lost) > 1, "it is not said what came from the lists"
        for batch_id, origin in list(origins(new).items())[whole:]:
            listed = old["batch_results"][batch_id - 1]["systematic_outliers"]
            assert old_records(new, batch_id) == ([] if origin == "nothing" else listed)
            seen.add(origin)
    assert seen == {"list", "header", "nothing"}


def test_cut_in_the_lists_before_the_batches(tmp_path: Path, old: dict, text: bytes) -> None:
    """Whole records are kept; which batch they are of is not known."""
    start, stop = text.index(b'"all_systematic_outliers"'), text.index(b'"batch_results"')
    seen = set()
    for cut in [*range(start + 40, stop, 61), stop]:
        whole = text[start:cut].count(b"]\n    }")
        if not whole:
            continue
        new, said = convert_text(tmp_path, text[:cut])
        assert old_records(new) == old["all_systematic_outliers"][:whole]
        assert {record["batch_id"] for record in new["all_systematic_outliers"]} == {None}
        assert any(f"{BATCHES} of {BATCHES} batches were not found" in line for line in said.lost)
        seen.add(whole)
    assert len(seen) == len(old["all_systematic_outliers"])


@pytest.mark.parametrize("cut", [0, 1, 20, 200, 500])
def test_nothing_left_of_it(tmp_path: Path, text: bytes, cut: int) -> None:
    with pytest.raises(BadInput, match=r"OLD = .*holds no result that can be read"):
        convert_text(tmp_path, text[:cut])


def test_cut_in_a_character(tmp_path: Path, old: dict) -> None:
    named = copy.deepcopy(old)
    named["batch_results"][2]["run_dir"] = "résultats/été"
    text = json.dumps(named, indent=2, ensure_ascii=False).encode()
    cut = text.index("résultats".encode()) + 2
    assert text[cut - 1 : cut] == "é".encode()[:1]
    new, said = convert_text(tmp_path, text[:cut])
    assert origins(new)[2] == "occurrences"
    assert old_records(new, 3) == [] or origins(new)[3] == "header"
    assert f"not read after byte {cut}, where the text ends, in batch 3" in said.lost[0]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "bytes that are no JSON": lambda text: b"\x00\xff{]]" * 200,
    "bytes that are no UTF-8 in a string": lambda text: text[:100] + b'"\xc3\x28"' + text[107:],
    "nothing: bytes are missing": lambda text: b"",
    "an opened bracket": lambda text: text.replace(b"}", b"[", 1),
    "a quote that opens a string": lambda text: text.replace(b",", b'"', 1),
    "another batch's text": lambda text: text[:300] + b'"seq_pos": {"a": [' + text[320:],
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("place", [0.02, 0.3, 0.55, 0.93])
def test_damage_in_one_batch_leaves_the_others(tmp_path: Path, old: dict, text: bytes, kind: str, place: float) -> None:
    starts = [match.start() for match in re.finditer(rb'\{\n      "batch_id"', text)]
    occurrences = text.index(b'"feature_outliers"', starts[1])
    at = occurrences + 30 + int((starts[2] - 3000 - occurrences) * place)
    damaged = text[:at] + DAMAGE[kind](text[at : at + 1500]) + text[at + 1500 :]
    new, said = convert_text(tmp_path, damaged)
    assert origins(new) == {1: "occurrences", 2: "list", 3: "occurrences", 4: "occurrences"}
    assert old_records(new) == old["all_systematic_outliers"]
    assert not said.differing
    assert any("batch 2: its occurrences could not be read" in line for line in said.lost)
    if found := re.search(r"not read after byte (\d+), up to byte (\d+), in batch 2", " ".join(said.lost)):
        assert at - 1024 <= int(found[1]) <= at + 1500, "the place of the damage"
        assert damaged[int(found[2]) :].lstrip(b"{\n ").startswith(b'"batch_id": 3')


def test_damage_in_the_header_leaves_the_batches(tmp_path: Path, old: dict, text: bytes) -> None:
    at = text.index(b'"layer_percentage"') + 3
    new, said = convert_text(tmp_path, text[:at] + b"\x07#" + text[at + 2 :])
    assert old_records(new) == old["all_systematic_outliers"]
    assert set(origins(new).values()) == {"occurrences"}
    assert any("all_systematic_outliers was read up to its record 0 only" in line for line in said.lost)


def test_damage_between_many_batches(tmp_path: Path, old: dict, text: bytes) -> None:
    """Two batches lost with their lists: their records are known, but not whose they are."""
    starts = [match.start() for match in re.finditer(rb'\{\n      "batch_id"', text)]
    damaged = bytearray(text)
    for i in (1, 2):
        damaged[starts[i] : starts[i] + 400] = b"?" * 400
    new, said = convert_text(tmp_path, bytes(damaged))
    assert origins(new) == {1: "occurrences", 4: "occurrences"}
    lists = [entry["systematic_outliers"] for entry in old["batch_results"]]
    unknown = [r for r in new["all_systematic_outliers"] if r["batch_id"] is None]
    assert [r["feature_dim"] for r in unknown] == [r["feature_dim"] for r in lists[1] + lists[2]]
    assert any(f"{len(unknown)} records are of batches that were not found" in line for line in said.lost)


def test_not_a_number_and_infinity(tmp_path: Path) -> None:
    """As json.dump writes them: a layer's maximum is NaN, an outlier's value is infinite."""
    activations = batch(0)
    activations["layer_0_ln_mlp"][0, 5, 7] = torch.nan
    activations["layer_1_ln_attn"][0, 0, 3] = -torch.inf
    activations["layer_0_ln_attn"][0, 0, 3] = torch.inf
    old = old_results([activations, batch(1)], {"model": 'a NaN, -Infinity: \\ "NaN" model', "experiment_name": "\x7f"})
    text = json.dumps(old, indent=2).encode()
    assert b": NaN" in text
    assert b": -Infinity" in text
    new, said = convert_text(tmp_path, text)
    assert (said.lost, said.differing) == ([], [])
    assert said.notes == ["1 records have an infinity, which is written as 3.4028235e+38"]
    assert new["run_config"]["model"] == old["run_config"]["model"]
    largest = float(np.finfo(np.float32).max)
    expected = copy.deepcopy(old["all_systematic_outliers"])
    for record in expected:
        record["max_magnitude"] = min(record["max_magnitude"], largest)
        record["example_values"] = [max(-largest, min(value, largest)) for value in record["example_values"]]
    assert old_records(new) == expected
    assert new["batch_results"][0]["outlier_summary"]["layer_stats"]["max_magnitude"][1] is None


def test_occurrences_that_are_not_a_number_are_left_out(tmp_path: Path, old: dict) -> None:
    changed = copy.deepcopy(old)
    info = changed["batch_results"][1]["outlier_info"]
    info["feature_outliers"][3].append({"layer": "layer_0_ln_attn", "seq_pos": 0, "value": math.nan})
    info["layer_stats"]["layer_0_ln_attn"]["num_outliers"] += 1
    new, said = convert_text(tmp_path, json.dumps(changed, indent=2).encode())
    assert said.notes == ["batch 2: 1 occurrences are NaN, which is no outlier: left out"]
    assert old_records(new) == old["all_systematic_outliers"]


@pytest.mark.parametrize("between", [b"", b"\n\n", b"\x00\x00"])
@pytest.mark.parametrize("cut", [None, 0.1, 0.5, 0.9])
def test_files_one_after_the_other(tmp_path: Path, old: dict, text: bytes, between: bytes, cut: float | None) -> None:
    """A file that a second run was appended to: the one of which more is sound is taken, and the other is named."""
    other = old_results([batch(seed) for seed in range(10, 12)], {"model": "example/other"})
    first = json.dumps(other, indent=2).encode()
    first = first[: int(len(first) * cut)] if cut else first
    new, said = convert_text(tmp_path, first + between + text)
    assert new["run_config"]["model"] == "example/model-1b"
    assert old_records(new) == old["all_systematic_outliers"]
    assert any("another document in the same file, bytes 0 to" in line for line in said.notes)
    assert said.lost == []


def test_text_behind_the_end(tmp_path: Path, old: dict, text: bytes) -> None:
    new, said = convert_text(tmp_path, text + b"\nTraceback (most recent call last)\n")
    assert old_records(new) == old["all_systematic_outliers"]
    assert len(said.lost) == 1
    assert "behind the document's end" in said.lost[0]


def test_a_file_that_contradicts_itself(tmp_path: Path, old: dict) -> None:
    """Occurrences decide, and every difference is told."""
    changed = json.loads(json.dumps(old))
    for record in (changed["batch_results"][1]["systematic_outliers"][0], changed["all_systematic_outliers"][0]):
        record["max_magnitude"] += 1
    changed["batch_results"][2]["systematic_outliers"] = changed["batch_results"][2]["systematic_outliers"][1:]
    new, said = convert_text(tmp_path, json.dumps(changed, indent=2).encode())
    assert old_records(new) == old["all_systematic_outliers"]
    told = "\n".join(said.differing)
    missing = old["batch_results"][2]["systematic_outliers"][0]["feature_dim"]
    changed_dim = changed["batch_results"][1]["systematic_outliers"][0]["feature_dim"]
    assert f"batch 3, dimension {missing}: systematic by the occurrences only" in told
    assert f"batch 2, dimension {changed_dim}: max_magnitude is" in told
    assert "all_systematic_outliers does not hold the list of batch 1 in its place" in told


def test_other_criteria_than_the_file_was_made_with_are_told(tmp_path: Path, text: bytes) -> None:
    new, said = convert_text(tmp_path, text, Shares(0.95, 0.9))
    assert len(said.differing) >= 1
    assert said.lost == []
    assert all(record["layer_percentage"] >= 0.95 for record in new["all_systematic_outliers"])


def _below_threshold(info: dict) -> None:
    info["feature_outliers"][3][0]["value"] = 1.5


def _lost_occurrence(info: dict) -> None:
    info["feature_outliers"][3].pop()


def _unknown_layer(info: dict) -> None:
    info["feature_outliers"][3][0]["layer"] = "layer_99_ln_attn"


def _impossible_position(info: dict) -> None:
    info["feature_outliers"][3][0]["seq_pos"] = 32


def _no_stats(info: dict) -> None:
    info["layer_stats"] = {}


def _negative_position(info: dict) -> None:
    info["feature_outliers"][3][0]["seq_pos"] = -1


def _text_value(info: dict) -> None:
    info["feature_outliers"][3][0]["value"] = "7.5"


def _nested_value(info: dict) -> None:
    info["feature_outliers"][3][0]["value"] = {"layer": [1, {"value": 7.0}]}


def _huge_dimension(info: dict) -> None:
    info["feature_outliers"]["9" * 20] = info["feature_outliers"].pop(3)


def _no_dimension(info: dict) -> None:
    info["feature_outliers"]["three"] = info["feature_outliers"].pop(3)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_below_threshold, "below its threshold 6.0"),
        (_lost_occurrence, "but its layer_stats count"),
        (_unknown_layer, "in layers that its layer_stats do not have"),
        (_impossible_position, "an occurrence at position 32, but only 32 positions"),
        (_no_stats, "are missing"),
        (_negative_position, "impossible position"),
        (_text_value, "this is no occurrence"),
        (_nested_value, "this is no occurrence"),
        (_huge_dimension, "'99999999999999999999' is no dimension"),
        (_no_dimension, "'three' is no dimension"),
    ],
)
def test_occurrences_that_cannot_be_trusted(
    tmp_path: Path, old: dict, spoil: Callable[[dict], None], problem: str
) -> None:
    """The file is JSON, but what it says can't be: the batch's own list is taken, and this is said."""
    changed = copy.deepcopy(old)
    spoil(changed["batch_results"][1]["outlier_info"])
    new, said = convert_text(tmp_path, json.dumps(changed, indent=2).encode())
    assert origins(new) == {1: "occurrences", 2: "list", 3: "occurrences", 4: "occurrences"}
    assert old_records(new) == old["all_systematic_outliers"]
    assert problem in "\n".join(said.lost)


def test_no_damage_is_a_crash(tmp_path: Path) -> None:
    """Whatever happens to the bytes: what is called clean is as it was, and the rest is said to be damaged."""
    old = old_results([batch(seed, length=8, layers=4, d=8) for seed in range(3)])
    text = json.dumps(old, indent=2).encode()
    truth = {entry["batch_id"]: entry["systematic_outliers"] for entry in old["batch_results"]}
    tokens = [*b'"{}[],:\\', *map(bytes, (b"NaN", b"-Infinity", b"\xff", b"1e999", b"9" * 20, b'{"batch_id": 2,'))]
    rng = np.random.default_rng(3)
    clean = 0
    for _ in range(300):
        damaged = bytearray(text)
        for _ in range(rng.integers(1, 4)):
            at, other = rng.integers(0, len(damaged), 2).tolist()
            token = tokens[rng.integers(len(tokens))]
            token = token if isinstance(token, bytes) else bytes([token])
            length = int(rng.integers(0, 1500))
            match rng.integers(0, 4):
                case 0:
                    damaged[at : at + 1] = token
                case 1:
                    del damaged[at : at + length]
                case 2:
                    damaged[at:at] = damaged[other : other + length]
                case 3:
                    damaged[at : at + 8] = rng.bytes(8)
        try:
            new, said = convert_text(tmp_path, bytes(damaged))
        except BadInput:
            continue
        if not said.lost and not said.differing:
            clean += 1
            assert {i: old_records(new, i) for i in truth} == truth
    assert clean < 30, "damage goes unseen"


def test_huge_numbers_take_no_memory_and_no_time(tmp_path: Path, old: dict) -> None:
    changed = json.loads(json.dumps(old))
    changed["analysis_summary"]["total_batches"] = 10**15
    changed["batch_results"][1]["batch_id"] = 10**15
    new, said = convert_text(tmp_path, json.dumps(changed, indent=2).encode())
    assert old_records(new) == old["all_systematic_outliers"]
    assert origins(new) == {1: "occurrences", 2: "header", 3: "occurrences", 4: "occurrences"}
    assert "batch_id is 1000000000000000" in said.lost[0]


def test_the_layout_between_the_old_and_the_new(tmp_path: Path, old: dict) -> None:
    """Files with a summary in place of the occurrences have nothing to recount, and lose nothing."""
    between = copy.deepcopy(old)
    for entry in between["batch_results"]:
        info = entry.pop("outlier_info")
        entry["outlier_summary"] = {
            "total_outlier_features": len(info["feature_outliers"]),
            "layer_stats": info["layer_stats"],
            "threshold": 6.0,
        }
    new, said = convert_text(tmp_path, json.dumps(between, indent=2).encode())
    assert (said.lost, said.differing) == ([], [])
    assert old_records(new) == old["all_systematic_outliers"]
    assert new["batch_results"][0]["outlier_summary"]["threshold"] == 6.0


def test_a_single_batch_file(tmp_path: Path, old: dict) -> None:
    """The old code once wrote each batch to a file of its own."""
    new, _ = convert_text(tmp_path, json.dumps(old["batch_results"][2], indent=2).encode())
    assert old_records(new, 3) == old["batch_results"][2]["systematic_outliers"]


@pytest.mark.parametrize("cut", [None, 0.8])
def test_compressed(tmp_path: Path, old: dict, text: bytes, cut: float | None) -> None:
    data = gzip.compress(text[:20_000]) + gzip.compress(text[20_000:])
    data = data[: int(len(data) * cut)] if cut else data
    (tmp_path / "old.json.gz").write_bytes(data)
    document, said = convert(str(tmp_path / "old.json.gz"), SHARES, lambda line: None)
    assert old_records(document) == old["all_systematic_outliers"]
    assert document["converted_from"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert ("the compressed data ends too early" in " ".join(said.lost)) is (cut is not None)


def test_from_and_to_a_bucket(s3_url: str, text: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with fsspec.open(f"{s3_url}/run/final_analysis_results.json", "wb") as file:
        file.write(text)
    assert main(["convert", f"{s3_url}/run/final_analysis_results.json"]) == 0
    with fsspec.open(f"{s3_url}/run/final_analysis_results.converted.json", "rb") as file:
        assert json.load(file)["analysis_summary"]["total_batches"] == BATCHES
    assert main(["convert", f"{s3_url}/run/final_analysis_results.json"]) == 2
    assert main(["convert", f"{s3_url}/run/missing.json"]) == 2
    assert "missing.json': there is no such file" in capsys.readouterr().err


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "final_analysis_results.json"
    write_old_results(old, [batch(0), batch(1)])
    target = tmp_path / "final_analysis_results.converted.json"
    assert default_target(str(old)) == default_target(f"{old}.gz") == str(target)
    assert main(["convert", str(old)]) == 0
    written = target.read_bytes()
    assert json.loads(written)["format"]["version"] == 2
    assert main(["convert", str(old)]) == 2
    assert f"NEW = '{target}': is there already" in capsys.readouterr().err
    target.write_text("{}")
    assert main(["convert", str(old), str(target), "--force"]) == 0
    assert target.read_bytes() == written
    assert main(["convert", str(old), str(old), "--force"]) == 2
    assert "is the old file" in capsys.readouterr().err
    assert main(["convert", str(target), str(tmp_path / "x.json")]) == 2
    assert "is in the new layout already" in capsys.readouterr().err
    assert main(["convert", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    (tmp_path / "cut.json").write_bytes(old.read_bytes()[:-5000])
    assert main(["convert", str(tmp_path / "cut.json")]) == 1
    assert "lost: batch 2: its occurrences could not be read" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cut.converted.json",
        "cut.json",
        "final_analysis_results.converted.json",
        "final_analysis_results.json",
    ]


def test_no_tensor_library_and_no_traceback(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom tasks.outliers.__main__ import main\ncode = main(['convert', sys.argv[1]])\n"
        "print(code, sorted({'torch', 'transformers', 'prefect'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "none.json")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == "2 []"
    assert done.stderr == f"OLD = '{tmp_path}/none.json': there is no such file or folder; check the path\n"


MEASURE = """
import sys
from tasks.outliers.__main__ import main

def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))) * 1024

before = peak()
code = main(sys.argv[1:])
print(code, peak() - before)
"""


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """More than 200 MB of occurrences: the process grows by less than 150 MB (and would by gigabytes, loading them)."""
    large = Large(batches=4, dims=500, points=64, positions=256, hits=16)
    path = tmp_path / "large.json"
    large.write(path)
    assert path.stat().st_size > 200e6
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "convert", str(path)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    code, grown = map(int, done.stdout.split("\n")[-2].split())
    assert code == 0, done.stderr
    assert grown < 150e6
    new = json.loads((tmp_path / "large.converted.json").read_bytes())
    assert len(new["all_systematic_outliers"]) == 2000
    assert set(origins(new).values()) == {"occurrences"}
    assert {record["total_occurrences"] for record in new["all_systematic_outliers"]} == {64 * 16}
    assert (tmp_path / "large.converted.json").stat().st_size < 0.01 * path.stat().st_size
    assert done.stderr.count("MB (") == 2
