"""Task `outliers.prepare`: what it finds out without loading a weight, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.artifacts.shard import Shard
from tasks.artifacts.store import Store
from tasks.errors import BadInput
from tasks.models.fingerprint import fingerprint
from tasks.models.load import load_tokenizer
from tasks.models.spec import ModelRef
from tasks.outliers.model_facts import quantization
from tasks.outliers.spec import PREPARE, PrepareParams
from tasks.runner import run_shard
from tasks.text.spec import TextSource
from tests.models.tiny import save_tiny_model

LONGEST = "Choose 1) or 2), and stop when you are done with it."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral of 256 positions, whose tokenizer begins every text with <s>."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "mixtral", "mixtral")


@pytest.fixture
def changed(folder: Path, tmp_path: Path):
    """A copy of the model with other settings in its config.json."""

    def change(**settings: object) -> Path:
        copy = shutil.copytree(folder, tmp_path / "changed")
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | settings))
        return copy

    return change


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    documents = ["The player bets 10 dollars and wins.", None, "Stop.", LONGEST]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def prepare(store: Store, model: Path | ModelRef, text: Path, **source: object) -> Shard:
    ref = model if isinstance(model, ModelRef) else ModelRef(source=str(model))
    params = PrepareParams(model=ref, text=TextSource(location=str(text), **{"length": 16} | source))
    spec = PREPARE.spec(params, seed=3)
    run_shard(store, spec)
    return Shard(store, spec.path)


def test_outputs(store: Store, folder: Path, text: Path) -> None:
    shard = prepare(store, folder, text, sequences=2)
    ref = ModelRef(source=str(folder))
    tokenizer = load_tokenizer(ref)
    first, second, third = (
        tokenizer(words, add_special_tokens=False)["input_ids"]
        for words in ("The player bets 10 dollars and wins.", "Stop.", LONGEST)
    )
    stream = [*first, tokenizer.eos_token_id, *second, tokenizer.eos_token_id, *third]
    bos = tokenizer.bos_token_id
    table = shard.table("sequences")
    assert table.schema.field("sequence").type == "int32"
    assert table.schema.field("document").type == "int64"
    assert str(table.schema.field("tokens").type).startswith("list<")
    assert str(table.schema.field("tokens").type.value_type) == "int32"
    rows = table.to_pylist()
    assert [row["tokens"] for row in rows] == [[bos, *stream[:15]], [bos, *stream[15:30]]]
    owners = [0] * (len(first) + 1) + [2] * (len(second) + 1) + [3] * len(third)
    assert [row["document"] for row in rows] == [owners[0], owners[15]]
    assert [row["sequence"] for row in rows] == [0, 1]

    model = AutoModelForCausalLM.from_pretrained(folder)
    total = sum(p.numel() for p in model.parameters())
    idle = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name) // 2
    study = shard.json("study")
    assert study == {
        "model": ref.model_dump(mode="json"),
        "model_fingerprint": fingerprint(ref),
        "model_info": study["model_info"],
        "parameters": total,
        "active_parameters": total - idle,
        "quantization": None,
        "bos": True,
        "sequences": 2,
        "tokens": 32,
        "longest": 16,
        "documents": len(set(owners[:31])),
        "warnings": ["1 document without text skipped."],
    }
    assert study["model_info"]["d_model"] == 64
    assert shard.counts == {"sequences": 2, "tokens": 32}


def test_documents_of_their_own_without_bos(store: Store, folder: Path, text: Path) -> None:
    shard = prepare(store, folder, text, length=8, pack=False, bos="never")
    table = shard.table("sequences").to_pydict()
    assert table["document"] == [0, 2, 3]
    bos = load_tokenizer(ModelRef(source=str(folder))).bos_token_id
    assert all(tokens[0] != bos and len(tokens) <= 8 for tokens in table["tokens"])
    study = shard.json("study")
    assert not study["bos"]
    assert study["longest"] == 8
    assert study["warnings"][0].startswith("The text gives 3 sequences, not the 16 asked for")


def test_the_same_again_and_a_new_look_at_the_text(store: Store, folder: Path, text: Path, tmp_path: Path) -> None:
    first = prepare(store, folder, text)
    assert prepare(Store(tmp_path / "again"), folder, text).manifest.digest == first.manifest.digest
    text.write_text('{"text": "another text"}')
    assert prepare(store, folder, text).manifest.digest != first.manifest.digest


@pytest.mark.usefixtures("s3_url")
def test_model_and_text_in_s3(store: Store, s3_url: str, folder: Path, text: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TOMOGRAPH_CACHE", str(tmp_path / "cache"))
    local = prepare(store, folder, text)
    bucket = Store(s3_url)
    for path in folder.iterdir():
        bucket.write_bytes(f"model/{path.name}", path.read_bytes())
    bucket.write_bytes("texts/a.jsonl", text.read_bytes())
    remote = prepare(store, ModelRef(source=f"{s3_url}/model"), f"{s3_url}/texts")
    assert remote.table("sequences") == local.table("sequences")
    assert remote.json("study")["active_parameters"] == local.json("study")["active_parameters"]
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []


class TestRefusals:
    def refused(self, store: Store, model: Path, text: Path, **source: object) -> BadInput:
        with pytest.raises(BadInput) as caught:
            prepare(store, model, text, **source)
        return caught.value

    def test_too_long(self, store: Store, folder: Path, text: Path) -> None:
        error = self.refused(store, folder, text, length=257)
        assert (error.field, error.value) == ("text.length", 257)
        assert "at most 256 tokens" in str(error)
        prepare(store, folder, text, length=256)

    def test_no_such_text_before_the_tokenizer_is_read(self, store: Store, folder: Path, tmp_path: Path) -> None:
        bare = tmp_path / "bare"
        bare.mkdir()
        shutil.copy(folder / "config.json", bare)
        assert self.refused(store, bare, tmp_path / "no.txt").field == "text.location"
        assert self.refused(store, bare, folder / "config.json", format="text").field == "model.source"

    def test_nothing_in_it(self, store: Store, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": null}\n')
        error = self.refused(store, folder, tmp_path / "a.jsonl")
        assert error.field == "text.location"
        assert "2 empty documents" in str(error)

    def test_an_unknown_architecture(self, store: Store, changed, text: Path) -> None:
        error = self.refused(store, changed(model_type="perceptron9000"), text)
        assert error.field == "model.source"

    def test_an_architecture_that_cannot_be_built(self, store: Store, changed, text: Path) -> None:
        error = self.refused(store, changed(hidden_act="no_such_function"), text)
        assert error.field == "model.source"
        assert "cannot build a mixtral" in str(error)
        assert "no_such_function" in str(error)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq 4-bit"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "bitsandbytes 4-bit"),
        ({"load_in_8bit": True, "quant_method": "bitsandbytes"}, "bitsandbytes 8-bit"),
    ],
)
def test_quantization(changed, settings: dict, expected: str) -> None:
    folder = changed(quantization_config=settings)
    assert quantization(ModelRef(source=str(folder)), AutoConfig.from_pretrained(folder)) == expected


def test_the_embedded_model_and_text(store: Store) -> None:
    spec = PREPARE.spec(PrepareParams(model=ModelRef(), text=TextSource(sequences=4, length=128)))
    run_shard(store, spec)
    study = Shard(store, spec.path).json("study")
    assert study["parameters"] == study["active_parameters"] == 134_515_008
    assert study["quantization"] == "GGUF Q4_1"
    assert not study["bos"]
    assert (study["sequences"], study["tokens"], study["longest"], study["warnings"]) == (4, 512, 128, [])
