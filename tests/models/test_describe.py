import json

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
    ],
)
def test_bad_folders(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadInput, match=message):
        of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a gguf file at all, but long enough to read"])
def test_bad_gguf_files(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(BadInput, match="GGUF"):
        of(tmp_path / "m.gguf")
