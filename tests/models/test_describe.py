import json
import shutil

import pytest
from transformers import Gemma3Config

from tasks.errors import BadInput
from tasks.models.describe import describe
from tasks.models.spec import ModelInfo, ModelRef
from tests.models.tiny import ALL_ARCHITECTURES, D_MODEL, N_LAYERS, VOCAB_SIZE, tiny_config

pytestmark = pytest.mark.usefixtures("cache")


def of(folder):
    return describe(ModelRef(source=str(folder)))


@pytest.mark.parametrize("name", sorted(set(ALL_ARCHITECTURES) - {"nemotron_h"}))  # its class saves no number of layers
def test_every_architecture(name, tmp_path):
    config = tiny_config(name)
    config.save_pretrained(tmp_path)
    info = of(tmp_path)
    assert (info.n_layers, info.d_model, info.vocab_size) == (N_LAYERS, D_MODEL, VOCAB_SIZE)
    assert info.model_type == config.model_type
    alibi_or_rotary_without_limit = name.startswith(("bloom", "falcon"))
    assert info.max_positions == 256 or alibi_or_rotary_without_limit


def test_architecture_is_the_class_it_was_saved_from(tiny_folder):
    assert of(tiny_folder) == ModelInfo(
        n_layers=4,
        d_model=64,
        vocab_size=400,
        max_positions=256,
        model_type="llama",
        architecture="LlamaForCausalLM",
    )


def test_a_multimodal_configuration_that_leaves_sizes_to_defaults(tmp_path):
    """As published for Gemma 3: the text part says what differs from the class's defaults only."""
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 34}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    info, defaults = of(tmp_path), Gemma3Config().text_config
    assert info.n_layers == 34
    assert (info.d_model, info.vocab_size) == (defaults.hidden_size, defaults.vocab_size)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no config\.json"),
        ("{", "is not JSON"),
        ("{}", "names no model_type"),
        ('{"model_type": "no-such"}', "knows no model_type 'no-such'"),
        ("[]", "holds no settings"),
        ("7", "holds no settings"),
        ('{"model_type": "llama", "text_config": 7}', "holds no settings"),
        ("[" * 100_000, "is not JSON"),
        ("\xff", "is not JSON"),
    ],
)
def test_bad_folders(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(BadInput, match=message):
        of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a gguf file at all, but long enough to read"])
def test_bad_gguf_files(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(BadInput, match="GGUF"):
        of(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads = 5, which does not divide the width of the model, 64"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0, which is no number of heads"),
        ({"num_attention_heads": "four"}, "num_attention_heads = 'four'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3, which does not divide num_attention_heads = 4"),
        ({"num_key_value_heads": -1}, "num_key_value_heads = -1"),
        ({"num_hidden_layers": 0}, "makes n_layers 0"),
        ({"num_hidden_layers": "many"}, "values of other types"),
        ({"hidden_size": 10**300}, "d_model|values of other types"),
        ({"architectures": 5}, "values of other types"),
    ],
)
def test_impossible_sizes_are_named(tmp_path, changes, message):
    config = json.loads(tiny_config("llama").to_json_string()) | changes
    for name in ("head_dim", "architectures"):
        if name not in changes:
            config.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=message) as caught:
        of(tmp_path)
    assert caught.value.field == "model.source"
    assert "correct config.json" in caught.value.remedy


def test_weights_that_were_cut_off_are_found_before_anything_is_loaded(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:300_000])
    with pytest.raises(BadInput, match=rf"model\.safetensors has 300000 bytes and should have {len(whole)}"):
        of(folder)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(BadInput, match=r"model\.safetensors has no header of safetensors"):
        of(folder)


@pytest.mark.parametrize(
    ("file", "remedy"),
    [("m.gguf", r"name a GGUF file in it: .*m\.gguf"), ("adapter_config.json", r"as model\.adapter")],
)
def test_a_folder_of_something_else_says_what_to_give(tmp_path, file, remedy):
    (tmp_path / file).write_text("{}")
    with pytest.raises(BadInput, match=remedy):
        of(tmp_path)
