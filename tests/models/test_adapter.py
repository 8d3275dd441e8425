import json
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, LoraModel, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tasks.errors import BadInput
from tasks.models import load as load_module
from tasks.models.fingerprint import fingerprint
from tasks.models.load import load, load_tokenizer, local_folder
from tasks.models.spec import ModelRef
from tests.models.tiny import save_tiny_model, tiny_model, tiny_tokenizer
from tests.places.test_hub import lay_out

pytestmark = pytest.mark.usefixtures("cache")
IDS = torch.tensor([[1, 20, 30, 40, 50]])


def save_adapter(folder, model, config, seed=1):
    """Random adapter weights of visible size (peft starts B at zero)."""
    attached = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in attached.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    attached.save_pretrained(folder)
    return folder


LORA = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    config = LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], **LORA)
    return save_adapter(tmp_path_factory.mktemp("adapters") / "a", tiny_model("llama", vocab_size=400), config)


@pytest.fixture
def broken(adapter, tmp_path):
    """A copy of the adapter that a test may damage."""
    return shutil.copytree(adapter, tmp_path / "adapter")


def ref(model, adapter):
    return ModelRef(source=str(model), adapter=str(adapter))


def test_merged_equals_attached(tiny_folder, adapter):
    loaded = load(ref(tiny_folder, adapter))
    base = load(ModelRef(source=str(tiny_folder))).model
    before = base(IDS).logits
    attached = PeftModel.from_pretrained(base, adapter).eval()
    merged = loaded.model(IDS).logits
    torch.testing.assert_close(merged, attached(IDS).logits, rtol=1e-5, atol=1e-5)
    assert (merged - before).abs().max() > 0.05
    assert type(loaded.model) is type(tiny_model("llama"))
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.layout.blocks is loaded.model.model.layers


@pytest.mark.parametrize(
    ("name", "targets"), [("gpt2", ["c_attn", "c_fc"]), ("gpt_neox", ["query_key_value"]), ("mixtral", ["q_proj"])]
)
def test_other_architectures(name, targets, tmp_path):
    folder = save_tiny_model(tmp_path / "model", name)
    base = load(ModelRef(source=str(folder))).model
    config = LoraConfig(target_modules=targets, fan_in_fan_out=name == "gpt2", **LORA)
    adapter = save_adapter(tmp_path / "adapter", base, config)
    attached = PeftModel.from_pretrained(load(ModelRef(source=str(folder))).model, adapter).eval()
    merged = load(ref(folder, adapter)).model(IDS).logits
    torch.testing.assert_close(merged, attached(IDS).logits, rtol=1e-5, atol=1e-5)


def test_a_merged_model_is_a_folder_for_other_programs(tiny_folder, adapter):
    """Merged once; what is read from the folder equals what is merged in memory, and the base stays as it is."""
    lora = ref(tiny_folder, adapter)
    folder = local_folder(lora, fingerprint(lora))
    merged, again = load(lora), load(ModelRef(source=str(folder)))
    assert torch.equal(again.model(IDS).logits, merged.model(IDS).logits)
    assert not torch.equal(again.model(IDS).logits, load(ModelRef(source=str(tiny_folder))).model(IDS).logits)
    assert again.tokenizer("Bet 10").input_ids == merged.tokenizer("Bet 10").input_ids
    built = (folder / "config.json").stat().st_mtime_ns
    assert local_folder(lora) == folder
    assert (folder / "config.json").stat().st_mtime_ns == built
    assert local_folder(ModelRef(source=str(tiny_folder))) == tiny_folder


VOCABULARY = {"modules_to_save": ["embed_tokens", "lm_head"]}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of a Llama with tied weights and of one without."""
    folder = tmp_path_factory.mktemp("bases")
    return {tied: save_tiny_model(folder / str(tied), tie_word_embeddings=tied) for tied in (True, False)}


def trained(folder, base, tokenizer=None, rows=None, **config):
    """An adapter of the model in `base` with every trainable weight changed; the attached model's logits at IDS."""
    model = load(ModelRef(source=str(base))).model
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    attached = get_peft_model(model, LoraConfig(**(LORA | {"target_modules": ["q_proj", "v_proj"]} | config)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in attached.named_parameters():
            if parameter.requires_grad or "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    attached.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return attached.eval()(IDS).logits.detach()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 8}, "alpha_pattern": {"v_proj": 64}},
        {"layers_to_transform": [1, 2]},
        VOCABULARY,
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["norm"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"trainable_token_indices": {"embed_tokens": [30, 40]}},
    ],
    ids=lambda config: str(config)[:50],
)
def test_every_kind_of_lora_is_merged_as_attached(bases, tied, config, tmp_path):
    """In memory, and as transformers reads the merged folder, which says itself whether its weights are tied."""
    expected = trained(tmp_path / "lora", bases[tied], **config)
    base = load(ModelRef(source=str(bases[tied]))).model(IDS).logits
    assert (expected - base).abs().max() > 0.05
    lora = ref(bases[tied], tmp_path / "lora")
    torch.testing.assert_close(load(lora).model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    folder = local_folder(lora)
    again = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(again(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    same = torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] == same


def with_new_tokens():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<act>", "</act>"])
    return tokenizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [{}, VOCABULARY])
def test_an_adapter_with_added_tokens_brings_its_tokenizer_and_embeddings(bases, tied, config, tmp_path):
    tokenizer = with_new_tokens()
    rows = len(tokenizer)
    expected = trained(tmp_path / "lora", bases[tied], tokenizer, rows, **config)
    lora = ref(bases[tied], tmp_path / "lora")
    loaded = load(lora)
    torch.testing.assert_close(loaded.model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert loaded.model.config.vocab_size == rows
    for found in (loaded.tokenizer, load_tokenizer(lora), load(ModelRef(source=str(local_folder(lora)))).tokenizer):
        assert found("<act>Bet").input_ids == tokenizer("<act>Bet").input_ids


@pytest.mark.parametrize(
    ("tokenizer", "config", "message"),
    [
        (None, VOCABULARY, r"trained with 402 tokens where the model has 400, .*; put the tokenizer that it was"),
        (with_new_tokens, {"save": False}, r"holds no weights of the new ones; save it again .*save_embedding_layers"),
    ],
)
def test_added_tokens_without_what_they_need_are_refused(bases, tokenizer, config, message, tmp_path):
    """Already where the tokenizer is read: before any weight of the model."""
    config = dict(config)
    dropped = not config.pop("save", True)
    targets = ["q_proj", "embed_tokens"] if dropped else ["q_proj"]
    trained(tmp_path / "lora", bases[False], tokenizer and tokenizer(), 402, target_modules=targets, **config)
    if dropped:
        edit_weights(tmp_path / "lora", lambda w: {k: v for k, v in w.items() if "lora_" in k or "layers" in k})
    for read in (load_tokenizer, load):
        with pytest.raises(BadInput, match=message) as caught:
            read(ref(bases[False], tmp_path / "lora"))
        assert caught.value.field == "model.adapter"


def test_a_merge_that_changes_the_result_is_refused(tiny_folder, adapter, monkeypatch):
    """Whatever peft may come to do: the merged model is run beside the attached one."""
    merge = LoraModel.merge_and_unload

    def wrong(self, **options):
        merged = merge(self, **options)
        merged.lm_head.weight[399] += 1.0
        return merged

    monkeypatch.setattr(LoraModel, "merge_and_unload", wrong)
    with pytest.raises(BadInput, match=r"merged model's logits differ from the attached one's by \d"):
        load(ref(tiny_folder, adapter))


def test_from_an_object_store(tiny_folder, adapter, tmp_path):
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem().put(str(adapter), f"/{tmp_path.name}/adapter", recursive=True)
    there, here = load(ref(tiny_folder, f"memory://{tmp_path.name}/adapter")), load(ref(tiny_folder, adapter))
    assert torch.equal(there.model(IDS).logits, here.model(IDS).logits)


def test_from_the_hub(run_python, tiny_folder, adapter, tmp_path):
    lay_out(tmp_path / "hf/hub", "org/adapter", "3" * 40, adapter)
    out = run_python(
        f"""
import torch
from tasks.models.fingerprint import fingerprint
from tasks.models.load import load
from tasks.models.spec import ModelRef
refs = [ModelRef(source={str(tiny_folder)!r}, adapter=a) for a in ("org/adapter", {str(adapter)!r})]
a, b = [load(ref).model(torch.tensor([[1, 20, 30]])).logits for ref in refs]
print(torch.equal(a, b), fingerprint(refs[0]).endswith("+lora2-hub-{"3" * 40}"))
""",
        HF_HOME=str(tmp_path / "hf"),
        HF_HUB_OFFLINE="1",
    )
    assert out == "True True"


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, edit):
    path = folder / "adapter_model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


def pickled(folder, content):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), r"no adapter_config\.json"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), r"no adapter_model\.safetensors"),
        (lambda f: edit_config(f, peft_type="IA3"), "is a IA3 adapter"),
        (lambda f: (f / "adapter_config.json").write_text("{"), r"adapter_config\.json is not JSON"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), r"adapter_config\.json holds no settings"),
        (lambda f: edit_config(f, alora_invocation_tokens=[1]), "can't be merged .*active only after certain tokens"),
        (lambda f: edit_weights(f, lambda w: {k: v / 0 for k, v in w.items()}), "NaN or infinite"),
        (lambda f: pickled(f, b"cos\nsystem\n(S'true'\ntR."), "damaged or hold more than tensors; give .* safetensors"),
        (
            lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 99),
            "weights are unreadable",
        ),
        (
            lambda f: edit_weights(f, lambda w: {k.replace("layers", "towers"): v for k, v in w.items()}),
            "does not fit the model: the model has no module model.towers",
        ),
    ],
)
def test_damaged_adapters_are_refused_before_the_weights_are_read(tiny_folder, broken, damage, message, monkeypatch):
    monkeypatch.setattr(load_module, "_weights", lambda *args: pytest.fail("the weights were read"))
    damage(broken)
    with pytest.raises(BadInput, match=message) as caught:
        load(ref(tiny_folder, broken))
    assert caught.value.field == "model.adapter"


def test_an_adapter_of_another_width_is_refused_before_the_weights_are_read(tmp_path, adapter, monkeypatch):
    wide = save_tiny_model(tmp_path / "wide", hidden_size=96)
    monkeypatch.setattr(load_module, "_weights", lambda *args: pytest.fail("the weights were read"))
    with pytest.raises(BadInput, match=r"lora_[AB]\.weight has size 64, and the model's .* is "):
        load(ref(wide, adapter))


def test_an_adapter_of_another_depth_is_refused(tmp_path, adapter):
    shallow = save_tiny_model(tmp_path / "shallow", num_hidden_layers=2)
    with pytest.raises(BadInput, match="does not fit the model"):
        load(ref(shallow, adapter))


def test_an_adapter_with_some_weights_lost_is_refused(tiny_folder, broken):
    def lose_one(weights):
        weights.popitem()
        return weights

    edit_weights(broken, lose_one)
    with pytest.raises(BadInput, match="1 of its weights do not match"):
        load(ref(tiny_folder, broken))


def test_other_kinds_of_adapters_are_refused(tiny_folder, tmp_path):
    config = IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        task_type="CAUSAL_LM",
    )
    save_adapter(tmp_path / "ia3", tiny_model("llama", vocab_size=400), config)
    with pytest.raises(BadInput, match="only LoRA"):
        load(ref(tiny_folder, tmp_path / "ia3"))
