import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import BadInput
from tasks.models.fingerprint import fingerprint
from tasks.models.load import load, load_tokenizer
from tasks.models.spec import ModelRef
from tasks.places.cache import cache_root
from tests.models.tiny import save_tiny_model, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("cache")
IDS = torch.tensor([[1, 20, 30, 40, 50]])


@pytest.fixture
def folder(tmp_path, tiny_folder):
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def ref(folder, **kwargs):
    return ModelRef(source=str(folder), **kwargs)


def test_a_local_folder(tiny_folder):
    loaded = load(ref(tiny_folder))
    assert torch.equal(loaded.model(IDS).logits, tiny_model("llama", vocab_size=400)(IDS).logits)
    assert loaded.layout.n_layers == 4
    assert loaded.tokenizer("Bet").input_ids[0] == 1
    assert loaded.pad_id == 0
    assert loaded.device == torch.device("cpu")
    assert loaded.ref == ref(tiny_folder)


def test_ready_for_hooks(tiny_folder):
    model = load(ref(tiny_folder)).model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.config._attn_implementation == "sdpa"
    assert not any(hasattr(m, "_hf_hook") for m in model.modules())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_precision(tiny_folder, dtype):
    model = load(ref(tiny_folder, dtype=dtype)).model
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("name", ["gpt2", "gpt_oss", "gemma3", "mixtral"])
def test_other_architectures_from_disk(name, tmp_path):
    loaded = load(ref(save_tiny_model(tmp_path / name, name)))
    vocab_size = loaded.model.config.vocab_size
    expected = tiny_model(name, vocab_size=vocab_size)(IDS).logits
    torch.testing.assert_close(loaded.model(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_pickled_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(load(ref(folder)).model(IDS).logits, tiny_model("llama", vocab_size=400)(IDS).logits)


def test_sharded_weights_and_a_lost_shard(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    model = load(ref(folder)).model
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(load(ref(folder)).model(IDS).logits, model(IDS).logits)
    shards[1].unlink()
    with pytest.raises(BadInput, match=f"there is no {shards[1].name}"):
        load(ref(folder))
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(BadInput, match="index of its weights is damaged"):
        load(ref(folder))


def test_soft_capped_scores_need_eager_attention(tmp_path):
    """scaled_dot_product_attention would leave Gemma 2's cap out and say nothing."""
    folder = save_tiny_model(tmp_path / "gemma2", "gemma2", attn_logit_softcapping=0.5)
    model = load(ref(folder)).model
    assert model.config._attn_implementation == "eager"
    logits = model(IDS).logits
    model.set_attn_implementation("sdpa")
    assert not torch.allclose(model(IDS).logits, logits, atol=1e-2)


def test_the_tokenizer_alone_fetches_no_weights(tiny_folder, tmp_path):
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem().put(str(tiny_folder), f"/{tmp_path.name}/model", recursive=True)
    for source in (tiny_folder, f"memory://{tmp_path.name}/model"):
        assert load_tokenizer(ref(source))("Bet $10").input_ids == tiny_tokenizer()("Bet $10").input_ids
    assert not list(cache_root().rglob("*.safetensors"))


def test_a_folder_in_an_object_store(tiny_folder, tmp_path):
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem().put(str(tiny_folder), f"/{tmp_path.name}/model", recursive=True)
    loaded = load(ref(f"memory://{tmp_path.name}/model"))
    assert torch.equal(loaded.model(IDS).logits, load(ref(tiny_folder)).model(IDS).logits)


def test_another_model_than_the_run_began_with_is_refused(folder):
    before = fingerprint(ref(folder))
    load(ref(folder), expected_fingerprint=before)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(BadInput, match="the model changed"):
        load(ref(folder), expected_fingerprint=before)


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


UP = "model.layers.2.mlp.up_proj.weight"


def _pickle(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:300_000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"there is no config\.json"),
        (lambda f: (f / "model.safetensors").unlink(), r"there is no model\.safetensors"),
        (lambda f: edit_config(f, model_type="no-such-model"), "configuration .*no-such-model"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "no tokenizer"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "no tokenizer"),
        (lambda f: edit_weights(f, lambda w: w.pop(UP)), f"lacks 1 of the model's weights, such as {UP}"),
        (
            lambda f: edit_weights(f, lambda w: w.update({UP: torch.zeros(3, 3)})),
            f"cannot be loaded: {UP} is 3x3 in its files, and 128x64 by its config.json",
        ),
        (
            lambda f: edit_weights(f, lambda w: w.update({"model.layers.2.mlp.up_proj.bias": torch.zeros(128)})),
            r"1 weights in its files have no place in the model, such as model\.layers\.2\.mlp\.up_proj\.bias",
        ),
        (lambda f: edit_config(f, num_hidden_layers=3), r"9 weights in its files have no place .*model\.layers\.3\."),
        (lambda f: edit_weights(f, lambda w: w[UP].view(-1)[5:6].fill_(math.nan)), f"its weight {UP} holds .*NaN"),
        (
            lambda f: edit_weights(f, lambda w: w["model.embed_tokens.weight"][7:8].fill_(math.inf)),
            r"its weight model\.embed_tokens\.weight holds values that are NaN or infinite",
        ),
        (
            lambda f: _pickle(f, b"cos\nsystem\n(S'true'\ntR."),
            r"bin are damaged or hold more than tensors",
        ),
        (lambda f: _pickle(f, b"nothing like a pickle"), r"pytorch_model\.bin are damaged"),
        (lambda f: (f / "tokenizer.json").write_text('{"version": "1.0", "model": 7}'), "no tokenizer"),
        (lambda f: (f / "tokenizer_config.json").write_text("[" * 9), "no tokenizer"),
        (lambda f: (f / "generation_config.json").write_text("{"), "configuration .*generation_config"),
        (lambda f: edit_config(f, hidden_act="no-such"), "cannot build a llama from its configuration .*no-such"),
        (
            lambda f: edit_config(f, num_attention_heads="four"),
            "configuration .*num_attention_heads",
        ),
        (_truncate, "cannot be loaded"),
        (lambda f: edit_config(f, num_hidden_layers=5), "lacks 9 of the model's weights"),
    ],
)
def test_damaged_folders_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(BadInput, match=message) as caught:
        load(ref(folder))
    assert (caught.value.field, caught.value.value) == ("model.source", str(folder))
    assert "weights_only" not in str(caught.value)


def test_tables_that_are_computed_and_heads_for_later_tokens_are_no_lost_weights(folder):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8), "mtp.norm.weight": torch.ones(64)}
    edit_weights(folder, lambda w: w.update(extra))
    assert torch.equal(load(ref(folder)).model(IDS).logits, tiny_model("llama", vocab_size=400)(IDS).logits)


def test_float16_that_overflows_is_named_with_the_remedy(folder):
    edit_weights(folder, lambda w: w[UP].view(-1)[5:6].fill_(1e5))
    load(ref(folder))
    with pytest.raises(BadInput, match=rf"its weight {UP} .*; float16 holds values up to 65504.*use dtype bfloat16"):
        load(ref(folder, dtype="float16"))
    edit_weights(folder, lambda w: (w[UP].fill_(3e4), w[UP.replace("up", "gate")].fill_(3e4)))
    with pytest.raises(BadInput, match=r"model\.dtype.*float16.*overflows"):
        load(ref(folder, dtype="float16"))


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(folder, tmp_path):
    small = save_tiny_model(tmp_path / "small", vocab_size=128)
    with pytest.raises(BadInput, match=r"tokenizer has 400 tokens and the model embeds 128"):
        load(ref(small))


def test_a_special_token_without_embedding_is_no_harm(folder):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    loaded = load(ref(folder))
    assert len(loaded.tokenizer) == loaded.layout.embeddings.weight.shape[0] + 1


def test_an_encoder_decoder_is_refused(folder):
    edit_config(folder, model_type="t5")
    with pytest.raises(BadInput, match=r"model\.source"):
        load(ref(folder))


def test_an_unreadable_gguf_file_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF but nothing more than that, however long it may look")
    with pytest.raises(BadInput, match="GGUF"):
        load(ref(tmp_path / "m.gguf"))
