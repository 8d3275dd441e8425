"""The embedded model, converted once per machine into the user's own cache."""

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from tasks.models.batching import pad, residuals_at_last_token
from tasks.models.describe import describe
from tasks.models.fingerprint import fingerprint
from tasks.models.load import load
from tasks.models.sources import model_source
from tasks.models.spec import ModelInfo, ModelRef
from tasks.places.cache import cache_root
from tasks.text.prompts import render


@pytest.fixture(scope="module")
def loaded():
    return load(ModelRef())


def test_it_was_converted_into_the_cache(loaded):
    folders = list((cache_root() / "gguf").glob(f"{fingerprint(ModelRef())}-float32-transformers-*"))
    assert any((folder / "model.safetensors").is_file() for folder in folders)
    assert str(cache_root()) in loaded.model.config._name_or_path


def test_weights_are_the_files_own(loaded):
    tensors = {t.name: t for t in GGUFReader(Path(model_source(ModelRef()).location)).tensors}
    model = loaded.model.model
    for name, weight in (
        ("token_embd.weight", model.embed_tokens.weight),
        ("blk.7.ffn_down.weight", model.layers[7].mlp.down_proj.weight),
        ("blk.29.attn_v.weight", model.layers[29].self_attn.v_proj.weight),
        ("output_norm.weight", model.norm.weight),
    ):
        stored = torch.from_numpy(dequantize(tensors[name].data, tensors[name].tensor_type).copy())
        assert torch.equal(weight, stored)


def test_description_agrees_with_the_model(loaded):
    assert describe(ModelRef()) == ModelInfo(
        n_layers=30, d_model=576, vocab_size=49152, max_positions=8192, model_type="llama", architecture=None
    )
    assert (loaded.layout.n_layers, loaded.layout.d_model) == (30, 576)


def test_numbers_are_cut_as_in_training(loaded):
    tokens = loaded.tokenizer.convert_ids_to_tokens(render(loaded.tokenizer, "Choose:\n\n1) Bet $100  25"))
    assert tokens == ["Choose", ":", "ĊĊ", "1", ")", "ĠBet", "Ġ$", "1", "0", "0", "ĠĠ", "2", "5"]


def test_it_answers(loaded):
    ids = torch.tensor([render(loaded.tokenizer, "What is the capital of France?", chat=True)])
    assert ids[0].tolist().count(loaded.tokenizer.bos_token_id) == 3  # <|im_start|>: system, user, assistant
    out = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(out[0, ids.shape[1] :])


def test_batches_of_real_prompts_equal_single_prompts(loaded):
    texts = ["The capital of France is", "Choice: ", "The player has 20 dollars left and wants to win it all back."]
    prompts = [render(loaded.tokenizer, text) for text in texts]
    together = residuals_at_last_token(loaded, prompts, [0, 14, 29])
    alone = torch.cat([residuals_at_last_token(loaded, [prompt], [0, 14, 29]) for prompt in prompts])
    assert (together - alone).norm() < 1e-4 * alone.norm()
    with torch.no_grad():
        logits = loaded.model(**pad(prompts, loaded.pad_id).inputs(loaded.model)).logits[:, -1]
    assert loaded.tokenizer.decode(logits[0].argmax()) == " Paris"
