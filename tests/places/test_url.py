from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tasks.artifacts.store import Store
from tasks.errors import BadInput, TransientError
from tasks.models.describe import describe
from tasks.models.files import MODEL
from tasks.models.fingerprint import fingerprint
from tasks.models.sources import model_source
from tasks.models.spec import ModelRef
from tasks.places import patient_file
from tasks.places.cache import cache_root
from tests.faulty_proxy import faulty_proxy

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def url(tiny_folder, tmp_path):
    """The tiny model in an object store in memory."""
    fs = MemoryFileSystem()
    folder = f"/{tmp_path.name}/model"
    fs.put(str(tiny_folder), folder, recursive=True)
    yield f"memory:/{folder}"
    fs.rm(f"/{tmp_path.name}", recursive=True)


def ref(url):
    return ModelRef(source=url)


def get(url):
    source = model_source(ref(url))
    return source.place.fetch(source.gguf_files() if source.gguf else MODEL)


def test_downloads_what_matters_once(url, tiny_folder):
    MemoryFileSystem().pipe(url.removeprefix("memory:/") + "/README.md", b"words")
    folder = get(url)
    assert folder.is_relative_to(cache_root())
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in tiny_folder.iterdir()}
    times = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert get(url) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == times


def test_describes_without_downloading(url, tiny_folder):
    assert describe(ref(url)) == describe(ModelRef(source=str(tiny_folder)))
    assert not (cache_root() / "models").exists()


def test_a_change_behind_the_url_is_another_model(url):
    before, folder = fingerprint(ref(url)), get(url)
    assert fingerprint(ref(url + "/")) == before
    path = url.removeprefix("memory:/") + "/tokenizer.json"
    fs = MemoryFileSystem()
    fs.pipe(path, fs.cat(path).replace(b"Bet", b"bet"))
    assert fingerprint(ref(url)) != before
    assert get(url) != folder


class Faulty(MemoryFileSystem):
    """The same store, failing as told."""

    protocol = "faulty"
    fail_at: str | None = None
    recover = False
    failures: ClassVar[list[str]] = []
    cut: str | None = None
    change: str | None = None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("faulty://"))

    def get_file(self, rpath, lpath, **kwargs):
        if self.fail_at and rpath.endswith(self.fail_at):
            self.failures.append(rpath)
            if self.recover:
                type(self).fail_at = None
            raise ConnectionResetError("connection reset")
        super().get_file(rpath, lpath, **kwargs)
        if self.cut and rpath.endswith(self.cut):
            with open(lpath, "r+b") as file:
                file.truncate(10)
        if self.change and rpath.endswith("config.json"):
            self.pipe(rpath.rpartition("/")[0] + "/" + self.change, b"something else")


@pytest.fixture
def faulty(url, monkeypatch):
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    for name in ("fail_at", "cut", "change"):
        monkeypatch.setattr(Faulty, name, None)
    monkeypatch.setattr(Faulty, "failures", [])
    monkeypatch.setattr(patient_file, "PATIENCE_SECONDS", 0.3)
    return url.replace("memory://", "faulty://")


def test_passing_faults_are_met_with_another_attempt(faulty, monkeypatch):
    monkeypatch.setattr(Faulty, "fail_at", "tokenizer.json")
    monkeypatch.setattr(Faulty, "recover", True)
    assert (get(faulty) / "tokenizer.json").is_file()
    assert len(Faulty.failures) == 1


@pytest.mark.parametrize(
    ("fault", "file", "message"),
    [
        ("fail_at", "tokenizer.json", "connection reset"),
        ("cut", "model.safetensors", "incomplete"),
        ("change", "tokenizer.json", "changed while"),
    ],
)
def test_partial_downloads_are_never_used(faulty, monkeypatch, fault, file, message):
    monkeypatch.setattr(Faulty, fault, file)
    with pytest.raises(TransientError, match=message):
        get(faulty)
    assert [p for p in (cache_root() / "models").iterdir() if p.is_dir()] == []
    monkeypatch.setattr(Faulty, fault, None)
    assert (get(faulty) / "model.safetensors").stat().st_size > 10


def test_a_gguf_file_is_downloaded_alone(tmp_path):
    fs = MemoryFileSystem()
    fs.pipe("/g/model.gguf", b"content")
    fs.pipe("/g/other.gguf", b"another")
    folder = get("memory://g/model.gguf")
    assert [p.name for p in folder.iterdir()] == ["model.gguf"]
    assert fingerprint(ref("memory://g/model.gguf")) != fingerprint(ref("memory://g/other.gguf"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://no/such/folder", "nothing at this URL"),
        ("memory://no/such.gguf", "nothing at this URL"),
        ("nosuchprotocol://bucket/model", "nosuchprotocol"),
    ],
)
def test_bad_urls(url, message):
    with pytest.raises(BadInput, match=message) as caught:
        fingerprint(ref(url))
    assert (caught.value.field, caught.value.value) == ("model.source", url)


def test_a_folder_without_a_model(tmp_path):
    MemoryFileSystem().pipe("/notes/README.md", b"words")
    with pytest.raises(BadInput, match="no model in this folder"):
        fingerprint(ref("memory://notes"))


def test_a_folder_in_s3_is_fetched_once_and_followed(s3_url, s3_server, tiny_folder):
    fs, folder = s3_server.filesystem(), f"{s3_url}/models/tiny"
    fs.put(str(tiny_folder), folder, recursive=True)
    local = get(folder)
    assert {p.name: p.read_bytes() for p in local.iterdir()} == {p.name: p.read_bytes() for p in tiny_folder.iterdir()}
    before = fingerprint(ref(folder))
    assert describe(ref(folder)).n_layers == 4
    fs.pipe(f"{folder}/README.md", b"words")
    assert fingerprint(ref(folder)) == before
    fs.pipe(f"{folder}/chat_template.jinja", b"another")
    assert fingerprint(ref(folder)) != before
    assert (get(folder) / "chat_template.jinja").read_bytes() == b"another"


def test_s3_errors_name_the_parameter(s3_url):
    for url, message in (
        (f"{s3_url}/nothing", "nothing at this URL"),
        ("s3://no-such-bucket-of-anyone/model", r"nothing at this URL|bucket does not exist"),
    ):
        with pytest.raises(BadInput, match=rf"model\.source.*({message})"):
            fingerprint(ref(url))


def test_wrong_s3_credentials_name_the_parameter(s3_url, monkeypatch):
    s3 = fsspec.get_filesystem_class("s3")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3.clear_instance_cache()  # fsspec keeps connections by their arguments, not by the environment
    try:
        with pytest.raises(BadInput, match=r"model\.source.*(credentials|denied)"):
            fingerprint(ref(f"{s3_url}/nothing"))
    finally:
        s3.clear_instance_cache()


def test_a_file_that_is_damaged_on_the_way_is_fetched_again(s3_server, s3_url, monkeypatch):
    s3 = fsspec.get_filesystem_class("s3")
    weights = bytes(range(256)) * 400
    with faulty_proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3.clear_instance_cache()
        try:
            store = Store(f"{s3_url}/model")
            store.write_bytes("config.json", b"{}")
            store.write_bytes("model.safetensors", weights)
            for fault in ("flip", "cut_short"):
                proxy.spoil(1, fault, lambda request: request.startswith("GET") and "model.safetensors" in request)
            folder = get(f"{s3_url}/model")
            assert (folder / "model.safetensors").read_bytes() == weights
            assert proxy.faults_left == 0
        finally:
            s3.clear_instance_cache()
