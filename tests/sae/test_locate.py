"""Where dictionaries are found: folders, an offline Hugging Face cache, URLs; and what a fingerprint notices."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from huggingface_hub import constants
from torch.nn.functional import normalize

from tasks.errors import BadInput
from tasks.sae.load import check_source, fingerprint, load_sae
from tasks.sae.spec import SaeSource
from tests.s3_server import S3Server
from tests.sae import checkpoints

REPO = "fnlp/Llama3_1-8B-Base-LXR-8x"
COMMIT = "0" * 39 + "1"


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Llama Scope's repository of residual dictionaries, two layers, one of them in the other spelling."""
    root = tmp_path / "repository"
    checkpoints.llama_scope(root / "Llama3_1-8B-Base-L1R-8x", seed=1, layer=1)
    checkpoints.llama_scope(root / "Llama3_1Base-L11R-8x", seed=11, layer=11)
    return root


def same(source: SaeSource, layer: int, seed: int) -> None:
    """The dictionary found is the one written with this seed: it has its decoder directions."""
    found = normalize(load_sae(source, layer).W_dec, dim=1)
    written = normalize(checkpoints.weights(seed)["W_dec"], dim=1)
    torch.testing.assert_close((found * written).sum(dim=1), torch.ones(checkpoints.D_SAE), atol=1e-4, rtol=0)


def test_layers_of_a_local_collection(collection: Path) -> None:
    source = SaeSource(kind="llama_scope", location=str(collection), layers=[1, 11])
    check_source(source, checkpoints.D_MODEL)
    same(source, 1, seed=1)
    same(source, 11, seed=11)


def test_the_layer_in_the_location(collection: Path) -> None:
    source = SaeSource(kind="llama_scope", location=f"{collection}/Llama3_1-8B-Base-L{{layer}}R-8x", layers=[1])
    same(source, 1, seed=1)
    assert load_sae(source, 1).name == f"llama_scope:{collection}/Llama3_1-8B-Base-L1R-8x"


def test_locations_of_single_layers(collection: Path) -> None:
    odd = {11: f"{collection}/Llama3_1Base-L11R-8x"}
    location = f"{collection}/Llama3_1-8B-Base-L{{layer}}R-8x"
    source = SaeSource(kind="llama_scope", location=location, layer_locations=odd, layers=[1, 11])
    same(source, 1, seed=1)
    same(source, 11, seed=11)


def test_another_site_of_a_collection_is_refused_by_name(tmp_path: Path) -> None:
    checkpoints.llama_scope(tmp_path / "Llama3_1-8B-Base-L5M-8x", layer=5, site="hook_mlp_out")
    with pytest.raises(BadInput, match="output of an MLP"):
        check_source(SaeSource(kind="llama_scope", location=str(tmp_path), layers=[5]))


def test_a_missing_layer_says_what_was_looked_for(collection: Path) -> None:
    source = SaeSource(kind="llama_scope", location=str(collection), layers=[7])
    with pytest.raises(BadInput, match=r"no folder for layer 7 with hyperparams\.json.*Llama3_1\*-L7R-\*x"):
        check_source(source)


def test_wildcards_must_leave_one_folder(tmp_path: Path) -> None:
    root = tmp_path / "gemma-scope-2b-pt-res/layer_8/width_16k"
    checkpoints.gemma_scope(root / "average_l0_20", seed=2)
    source = SaeSource(kind="gemma_scope", location=f"{tmp_path}/*/layer_{{layer}}/width_16k/average_l0_*", layers=[8])
    same(source, 8, seed=2)
    checkpoints.gemma_scope(root / "average_l0_71", seed=3)
    with pytest.raises(BadInput, match=r"2 dictionaries match layer 8: .*average_l0_20, .*average_l0_71"):
        check_source(source)


@pytest.mark.parametrize("location", ["/no/such/folder", "./nowhere", "no such thing", "../x/y"])
def test_a_location_that_is_none(location: str) -> None:
    with pytest.raises(BadInput, match="neither an existing folder nor"):
        check_source(SaeSource(kind="saelens", location=location, layers=[8]))


@pytest.fixture
def offline_hub(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts the collection into a Hugging Face cache, as a download leaves it, and turns the network off."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def cache(commit: str) -> Path:
        repository = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}"
        shutil.copytree(collection, repository / "snapshots" / commit)
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs/main").write_text(commit)
        return repository / "snapshots" / commit

    return cache


def test_hub_repository_from_the_local_cache(offline_hub: Callable[[str], Path]) -> None:
    offline_hub(COMMIT)
    source = SaeSource(kind="llama_scope", location=REPO, layers=[1, 11])
    check_source(source, checkpoints.D_MODEL)
    same(source, 1, seed=1)
    same(source, 11, seed=11)
    assert load_sae(source, 1).name == f"llama_scope:{REPO}/Llama3_1-8B-Base-L1R-8x"
    assert COMMIT in fingerprint(source, 1) != fingerprint(source, 11)


def test_hub_folder_and_revision(offline_hub: Callable[[str], Path]) -> None:
    offline_hub(COMMIT)
    location = f"{REPO}/Llama3_1-8B-Base-L{{layer}}R-8x"
    same(SaeSource(kind="llama_scope", location=location, revision=COMMIT, layers=[1]), 1, seed=1)


def test_hub_fingerprint_follows_the_commit(offline_hub: Callable[[str], Path]) -> None:
    source = SaeSource(kind="llama_scope", location=REPO, layers=[1])
    offline_hub(COMMIT)
    before = fingerprint(source, 1)
    offline_hub("0" * 39 + "2")
    assert fingerprint(source, 1) != before


def test_hub_repository_that_is_not_cached(offline_hub: Callable[[str], Path]) -> None:
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE"):
        check_source(SaeSource(kind="saelens", location="someone/else", layers=[1]))


def test_a_folder_behind_a_url(collection: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(collection), "/saes-test", recursive=True)
    try:
        source = SaeSource(kind="llama_scope", location="memory://saes-test", layers=[1, 11])
        check_source(source, checkpoints.D_MODEL)
        same(source, 1, seed=1)
        same(source, 11, seed=11)
        with pytest.raises(BadInput, match="no folder for layer 2"):
            load_sae(source, 2)
    finally:
        memory.rm("/saes-test", recursive=True)


def test_formats_that_name_the_layer_in_their_path_only(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(checkpoints.sparsify(tmp_path / "layers.8")), "/sparsify-test/layers.8", recursive=True)
    try:
        for location in ("memory://sparsify-test", "memory://sparsify-test/layers.{layer}"):
            same(SaeSource(kind="sparsify", location=location, layers=[8]), 8, seed=0)
    finally:
        memory.rm("/sparsify-test", recursive=True)


def test_layers_whose_files_are_byte_identical(tmp_path: Path) -> None:
    """Of one configuration, as every layer of a sparsify run has; and of one content, as a copied run has."""
    memory = fsspec.filesystem("memory")
    for layer, seed in ((8, 1), (9, 2)):
        checkpoints.sparsify(tmp_path / f"layers.{layer}", seed=seed)
    try:
        for run in ("step_1000", "step_2000"):
            memory.put(f"{tmp_path}/", f"/identical-test/{run}/", recursive=True)
            source = SaeSource(kind="sparsify", location=f"memory://identical-test/{run}", layers=[8, 9])
            check_source(source, checkpoints.D_MODEL)
            same(source, 8, seed=1)
            same(source, 9, seed=2)
            assert fingerprint(source, 8) != fingerprint(source, 9)
    finally:
        memory.rm("/identical-test", recursive=True)


@pytest.mark.parametrize("where", ["folder", "url"])
def test_fingerprint_follows_the_content(tmp_path: Path, where: str) -> None:
    folder = checkpoints.saelens(tmp_path / "sae", seed=0)
    memory = fsspec.filesystem("memory")
    source = SaeSource(
        kind="saelens", location=str(folder) if where == "folder" else "memory://fingerprint-test", layers=[8]
    )

    def current() -> str:
        memory.put(f"{folder}/", "/fingerprint-test/", recursive=True)
        return fingerprint(source, 8)

    try:
        first = current()
        shutil.rmtree(folder)
        checkpoints.saelens(folder, seed=0)
        assert current() == first
        (folder / "README.md").write_text("a file that decides nothing")
        assert current() == first
        shutil.rmtree(folder)
        checkpoints.saelens(folder, seed=1)
        assert current() != first
        shutil.rmtree(folder)
        checkpoints.saelens(folder, seed=0, apply_b_dec_to_input=True)
        assert current() != first
    finally:
        memory.rm("/fingerprint-test", recursive=True)


def test_matrices_are_held_in_the_precision_asked_for(collection: Path) -> None:
    source = SaeSource(kind="llama_scope", location=str(collection), layers=[1], dtype="bfloat16")
    sae = load_sae(source, 1)
    assert (sae.W_enc.dtype, sae.W_dec.dtype, sae.b_enc.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_a_collection_in_s3(collection: Path, s3_url: str, s3_server: S3Server) -> None:
    """Fetched once; a dictionary that is replaced gets another fingerprint and is fetched again."""
    fs, root = s3_server.filesystem(), f"{s3_url}/scope"
    fs.put(str(collection), root, recursive=True)
    source = SaeSource(kind="llama_scope", location=root, layers=[1, 11])
    check_source(source, checkpoints.D_MODEL)
    same(source, 1, seed=1)
    before = fingerprint(source, 1)
    assert fingerprint(source, 1) == before != fingerprint(source, 11)
    fs.put(str(collection / "Llama3_1Base-L11R-8x/checkpoints"), f"{root}/Llama3_1-8B-Base-L1R-8x/", recursive=True)
    assert fingerprint(source, 1) != before
    same(source, 1, seed=11)
    with pytest.raises(BadInput, match="no folder for layer 2"):
        check_source(SaeSource(kind="llama_scope", location=f"{s3_url}/nowhere", layers=[2]))


def test_byte_identical_configurations_in_s3(tmp_path: Path, s3_url: str, s3_server: S3Server) -> None:
    for layer, seed in ((8, 1), (9, 2)):
        s3_server.filesystem().put(
            str(checkpoints.sparsify(tmp_path / f"layers.{layer}", seed=seed)), f"{s3_url}/run/", recursive=True
        )
    source = SaeSource(kind="sparsify", location=f"{s3_url}/run", layers=[8, 9])
    check_source(source, checkpoints.D_MODEL)
    same(source, 8, seed=1)
    same(source, 9, seed=2)
