"""Texts, model folders, dictionary folders and specs that can't be used: each is refused by its field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.models.describe import describe
from tasks.models.spec import ModelRef
from tasks.outliers import spec as outliers
from tasks.patching import spec as patching
from tasks.sae.load import check_source
from tasks.sae.spec import SaeSource
from tasks.text.documents import open_texts
from tasks.text.spec import TextSource
from tests.bad_input.refusing import refused
from tests.sae import checkpoints

TEXTS = [
    ("a.jsonl", b"{oops}\n", "text.location"),
    ("a.jsonl", b"[1]\n", "text.location"),
    ("a.jsonl", b'{"text": 5}\n', "text.column"),
    ("a.jsonl", b'{"words": "a"}\n', "text.column"),
    ("a.jsonl", b"[" * 100_000 + b"\n", "text.location"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', "text.location"),
    ("a.jsonl", b"\xff\xfe\n", "text.location"),
    ("a.txt", b"\xff\xfe\x00", "text.location"),
    ("a.parquet", b"PAR1", "text.location"),
    ("a.jsonl.gz", b"no gzip", "text.location"),
    ("a.zip", b"PK\x03\x04", "text.format"),
    ("a.jsonl.zip", b"PK\x03\x04", "text.location"),
    ("a.docx", b"text", "text.format"),
]
CONFIGS: list[tuple[bytes, str]] = [
    (b"", "model.source"),
    (b"{oops", "model.source"),
    (b"[]", "model.source"),
    (b"5", "model.source"),
    (b"\xff\xfe", "model.source"),
    (b"[" * 100_000, "model.source"),
    (b'{"model_type": 5}', "model.source"),
    (b'{"model_type": "nothing-known"}', "model.source"),
    (b'{"model_type": "llama", "hidden_size": "wide"}', "model.source"),
    (b'{"model_type": "llama", "hidden_size": -1}', "model.source"),
    (b'{"model_type": ["llama"]}', "model.source"),
]
DICTIONARIES: list[tuple[str, dict[str, Any], str]] = [
    ("sparsify", {"d_in": "wide"}, "saes.location"),
    ("sparsify", {"k": -1}, "saes.location"),
    ("sparsify", {"k": "many"}, "saes.location"),
    ("llama_scope", {"d_model": None}, "saes.location"),
    ("llama_scope", {"d_sae": [1]}, "saes.location"),
    ("llama_scope", {"act_fn": "swish"}, "saes.location"),
]
PARAMS = [
    (patching.ACTIVATIONS, {}, "params.model"),
    (patching.SCREEN, {"model": 5}, "params.model"),
    (patching.WORDS, {"prompts": "a"}, "params.prompts"),
    (patching.VERDICT, {"prompts": [1]}, "params.prompts.0"),
    (outliers.SCAN, {"model": {"source": ""}}, "params.model.source"),
    (outliers.SUMMARY, {"name": None}, "params.name"),
    (outliers.ABLATION, {"model": {"source": "a", "dtype": "int8"}}, "params.model.dtype"),
    (outliers.PREPARE, {"model": {}, "text": {"length": 10**9}}, "params.text.length"),
    (outliers.PREPARE, {"model": {}, "text": {}, "colour": 1}, "params.colour"),
]


@pytest.mark.parametrize(("name", "content", "field"), TEXTS, ids=[f"{n}-{row[0]}" for n, row in enumerate(TEXTS)])
def test_texts(tmp_path: Path, name: str, content: bytes, field: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(lambda: list(map("".join, open_texts(TextSource(location=str(tmp_path / name))))), field)


@pytest.mark.parametrize("location", ["/no/such/file.txt", "nofs://a/b.txt", "s3:///no-bucket.txt", "embedded:nothing"])
def test_places_of_texts(location: str) -> None:
    refused(lambda: list(map("".join, open_texts(TextSource(location=location)))), "text.location")


@pytest.mark.parametrize(
    "source", ["./nowhere", "/no/such/folder", "a/b/c", "with space", "embedded:gpt-9", "a.gguf", "\0"]
)
def test_places_of_models(source: str) -> None:
    refused(lambda: describe(ModelRef(source=source)), "model.source")


@pytest.mark.parametrize(("config", "field"), CONFIGS, ids=range(len(CONFIGS)))
def test_models(tmp_path: Path, config: bytes, field: str) -> None:
    (tmp_path / "config.json").write_bytes(config)
    refused(lambda: describe(ModelRef(source=str(tmp_path))), field)


@pytest.mark.parametrize(("kind", "config", "field"), DICTIONARIES, ids=range(len(DICTIONARIES)))
def test_dictionaries(tmp_path: Path, kind: str, config: dict[str, Any], field: str) -> None:
    folder = getattr(checkpoints, kind)(tmp_path / "sae", **config)
    refused(lambda: check_source(SaeSource(kind=kind, location=str(folder), layers=[15])), field)


@pytest.mark.parametrize("content", [b"", b"{oops", b"[]", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_configurations_of_dictionaries(tmp_path: Path, content: bytes) -> None:
    folder = checkpoints.sparsify(tmp_path / "sae")
    (folder / "cfg.json").write_bytes(content)
    refused(lambda: check_source(SaeSource(kind="sparsify", location=str(folder), layers=[15])), "saes.location")


@pytest.mark.parametrize(("kind", "params", "field"), PARAMS, ids=[f"{row[0].name}-{row[2]}" for row in PARAMS])
def test_params_of_tasks(kind: Any, params: dict[str, Any], field: str) -> None:
    assert json.dumps(params)
    refused(lambda: kind.spec(params), field)
