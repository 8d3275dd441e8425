"""Tiny models go out in llama.cpp's layout and come back: as they were, or refused."""

import math

import gguf
import numpy as np
import pytest
import torch

from tasks.errors import BadInput
from tasks.models import gguf_weights
from tasks.models.fingerprint import fingerprint
from tasks.models.gguf_metadata import ARCHITECTURES
from tasks.models.load import load
from tasks.models.spec import ModelRef
from tests.models.gguf_files import rewrite, split, write
from tests.models.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("cache")
IDS = torch.arange(3, 63)[None] * 5
_OTHER_NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
_AS_PUBLISHED = {
    "qwen3moe": {"norm_topk_prob": True},
    "gemma3": {"query_pre_attn_scalar": 16, "sliding_window_pattern": 6},
}
"""Where a class's default is of none of its published models, and llama.cpp computes what these do."""


@pytest.fixture(scope="module")
def backend():
    return tiny_tokenizer().backend_tokenizer


@pytest.fixture(scope="module")
def vocab(backend):
    return backend.get_vocab_size()


@pytest.fixture
def gguf_of(tmp_path, backend, vocab):
    """Write the tiny model `name`; returns the path and the model."""

    def make(name="llama", overrides=None, **options):
        model = tiny_model(name, vocab_size=vocab, **(overrides or {}))
        return write(tmp_path / "m.gguf", model, backend, **options), model

    return make


def ref(path):
    return ModelRef(source=str(path))


def logits(path):
    return load(ref(path)).model(IDS).logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_comes_back(architecture, gguf_of):
    path, model = gguf_of(_OTHER_NAMES.get(architecture, architecture), _AS_PUBLISHED.get(architecture))
    loaded = load(ref(path)).model
    assert type(loaded) is type(model)
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_quantized_blocks_are_dequantized(gguf_of):
    kind = gguf.GGMLQuantizationType.Q8_0
    path, model = gguf_of(quantized=kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                stored = gguf.quants.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(stored, kind)))
    torch.testing.assert_close(logits(path), model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_without_an_output_tensor_the_embeddings_are_the_head(gguf_of):
    path, model = gguf_of(overrides={"tie_word_embeddings": True})
    loaded = load(ref(path)).model
    assert loaded.config.tie_word_embeddings
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def llama3_factors(theta, dim, original):
    """As llama.cpp's converter computes `rope_freqs.weight`."""
    factors = []
    for frequency in theta ** -(np.arange(0, dim, 2) / dim):
        wavelength = 2 * math.pi / frequency
        if wavelength < original / 4:
            factors.append(1.0)
        elif wavelength > original:
            factors.append(8.0)
        else:
            smooth = (original / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / 8 + smooth))
    return factors


_THETA = {"rope_theta": 10000.0}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
_LONG = {"long_factor": [2.0] * 8, "short_factor": [1.0 + i / 4 for i in range(8)]}


@pytest.mark.parametrize(
    ("name", "rope", "keys", "tensors"),
    [
        ("llama", {"rope_type": "llama3"} | LLAMA3, {}, {"rope_freqs.weight": llama3_factors(10000.0, 16, 64)}),
        ("llama", {"rope_type": "linear", "factor": 4.0}, {"factor": 4.0, "type": "linear"}, {}),
        ("llama", {"rope_type": "linear", "factor": 4.0}, {"factor": 4.0}, {}),
        (
            "qwen2",
            {"rope_type": "yarn"} | _YARN,
            {"type": "yarn", "factor": 4.0, "original_context_length": 32, "finetuned": True},
            {},
        ),
        (
            "qwen3",
            {"rope_type": "yarn", "beta_fast": 16.0, "beta_slow": 2.0} | _YARN,
            {"type": "yarn", "factor": 4.0, "original_context_length": 32}
            | {"yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0},
            {},
        ),
        *(
            (
                "phi3",
                {"rope_type": "longrope", "original_max_position_embeddings": original} | _LONG,
                {"type": "longrope", "original_context_length": original},
                {"rope_factors_long.weight": _LONG["long_factor"], "rope_factors_short.weight": _LONG["short_factor"]},
            )
            for original in (32, 128)
        ),
    ],
)
def test_rope_scaling_is_honoured(gguf_of, name, rope, keys, tensors):
    extra = {"original_max_position_embeddings": rope["original_max_position_embeddings"]} if name == "phi3" else {}
    overrides = {"rope_parameters": _THETA | rope} | extra
    path, model = gguf_of(
        name, overrides, keys={f"{name}.rope.scaling.{k}": v for k, v in keys.items()}, tensors=tensors
    )
    torch.testing.assert_close(logits(path), model(IDS).logits, rtol=1e-4, atol=1e-4)
    plain = tiny_model(name, vocab_size=model.config.vocab_size)(IDS).logits
    assert (plain - model(IDS).logits).abs().max() > 0.1


def test_rope_factors_of_no_formula_are_used_as_they_are(gguf_of):
    factors = [1.0, 3.0, 2.0, 1.5, 5.0, 1.0, 7.0, 2.5]
    path, model = gguf_of(tensors={"rope_freqs.weight": factors})
    rotary = model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq / torch.tensor(factors)
    torch.testing.assert_close(logits(path), model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_gemma_3_scales_its_global_attention_alone(gguf_of):
    local = {"rope_type": "default", "rope_theta": 10000.0}
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": local,
    }
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    path, model = gguf_of(
        "gemma3",
        {"rope_parameters": rope, "layer_types": kinds, "query_pre_attn_scalar": 16},
        keys={
            "gemma3.rope.scaling.type": "linear",
            "gemma3.rope.scaling.factor": 8.0,
            "gemma3.attention.sliding_window_pattern": [kind == "sliding_attention" for kind in kinds],
        },
    )
    torch.testing.assert_close(logits(path), model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("caps", [{"attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0}, {}])
def test_gemma_2_caps_and_scales(gguf_of, caps):
    path, model = gguf_of("gemma2", caps)
    torch.testing.assert_close(logits(path), model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_ends_of_turn_end_a_text(gguf_of):
    path, _ = gguf_of(keys={"tokenizer.ggml.eot_token_id": 5})
    assert load(ref(path)).model.generation_config.eos_token_id == [2, 5]


@pytest.fixture
def no_weights_read(monkeypatch):
    monkeypatch.setattr(gguf_weights, "dequantize", lambda *args: pytest.fail("the weights were read"))


@pytest.mark.usefixtures("no_weights_read")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tensors": {"blk.0.attn_q.bias": np.zeros(64)}},
            r"1 of its 40 tensors have no place .* blk\.0\.attn_q\.bias",
        ),
        ({"tensors": {"rope_freqs.weight": [1.0, 2.0]}}, "2 factors for 16 rotated dimensions"),
        ({"keys": {"llama.expert_count": 8}}, r"llama\.expert_count = 8 changes the result"),
        ({"keys": {"llama.logit_scale": 0.5}}, r"llama\.logit_scale = 0\.5"),
        ({"keys": {"llama.attention.scale": 0.5}}, r"llama\.attention\.scale"),
        ({"keys": {"llama.attention.sliding_window": 8}}, r"sliding_window = 8"),
        ({"keys": {"llama.some.new_key": True}}, r"llama\.some\.new_key"),
        ({"keys": {"llama.rope.dimension_count": 8}}, r"dimension_count = 8"),
        ({"keys": {"llama.attention.value_length": 8}}, r"value_length = 8"),
        ({"keys": {"llama.attention.head_count_kv": [2, 2, 1, 2]}}, r"head_count_kv differs between blocks"),
        ({"keys": {"llama.rope.scaling.type": "longrope"}}, "rope scaling can't be honoured"),
        ({"keys": {"llama.rope.scaling.yarn_log_multiplier": 0.1}}, "yarn_log_multiplier"),
        ({"keys": {"tokenizer.ggml.suppress_tokens": [4]}}, r"tokenizer\.ggml\.suppress_tokens"),
        ({"keys": {"general.type": "adapter"}}, "is a GGUF file of a adapter"),
        ({"keys": {"general.architecture": "rwkv7"}}, r"architecture 'rwkv7' are not read, only of llama, "),
        ({"keys": {"llama.attention.head_count": None}}, r"nothing about 'llama\.attention\.head_count'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_weights_are_read(gguf_of, options, message):
    path, _ = gguf_of(**options)
    with pytest.raises(BadInput, match=message) as caught:
        load(ref(path))
    assert (caught.value.field, caught.value.value) == ("model.source", str(path))


def test_metadata_that_changes_nothing_is_no_harm(gguf_of):
    path, model = gguf_of(keys={"llama.expert_count": 0, "llama.vocab_size": 400, "general.license": "mit"})
    torch.testing.assert_close(logits(path), model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "token_embd.weight", "output_norm.weight"])
def test_a_file_that_lacks_a_tensor_is_refused(gguf_of, tmp_path, name):
    path, _ = gguf_of()
    lacking = rewrite(path, tmp_path / "lacking.gguf", lambda n: n != name)
    with pytest.raises(BadInput, match="the file lacks 1 of the model's 39 weights, such as "):
        load(ref(lacking))


def test_a_tensor_of_another_shape_is_refused(gguf_of):
    path, _ = gguf_of(tensors={"blk.1.ffn_down.weight": np.zeros((32, 64))})
    with pytest.raises(BadInput, match=r"layers\.1\.mlp\.down_proj\.weight is 32x64, and by its metadata 64x128"):
        load(ref(path))


def test_a_split_file_is_read_whole_whichever_part_is_named(gguf_of, tmp_path):
    path, model = gguf_of()
    (tmp_path / "parts").mkdir()
    parts = split(path, tmp_path / "parts/model", 3)
    for named in (parts[0], parts[2]):
        torch.testing.assert_close(logits(named), model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert fingerprint(ref(parts[0])) == fingerprint(ref(parts[2]))
    before = fingerprint(ref(parts[0]))
    data = bytearray(parts[1].read_bytes())
    data[-5] ^= 1
    parts[1].write_bytes(data)
    assert fingerprint(ref(parts[0])) != before


def test_a_split_file_in_an_object_store(gguf_of, tmp_path):
    from fsspec.implementations.memory import MemoryFileSystem

    path, model = gguf_of()
    parts = split(path, tmp_path / "model", 2)
    fs, folder = MemoryFileSystem(), f"/{tmp_path.name}/gguf"
    for part in parts:
        fs.put(str(part), f"{folder}/{part.name}")
    torch.testing.assert_close(logits(f"memory:/{folder}/{parts[1].name}"), model(IDS).logits, rtol=1e-4, atol=1e-4)
    fs.rm(f"{folder}/{parts[0].name}")
    with pytest.raises(BadInput, match=f"split into 2 files, of which {parts[0].name} is missing"):
        load(ref(f"memory:/{folder}/{parts[1].name}"))


def test_parts_that_are_missing_or_renamed_are_refused(gguf_of, tmp_path):
    path, _ = gguf_of()
    parts = split(path, tmp_path / "model", 2)
    renamed = parts[0].rename(tmp_path / "first.gguf")
    with pytest.raises(BadInput, match="is a part of a file that was split into 2"):
        load(ref(renamed))
    with pytest.raises(BadInput, match=f"of which {parts[0].name} is missing"):
        load(ref(parts[1]))
