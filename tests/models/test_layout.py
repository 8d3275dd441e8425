import pytest
import torch
from torch import nn

from tasks.errors import BadInput
from tasks.models.layout import Layout, block_output, replace_block_output, verify
from tests.models.tiny import ALL_ARCHITECTURES, D_MODEL, N_LAYERS, tiny_model

IDS = torch.tensor([[1, 17, 33, 5, 99, 64, 7, 23, 80, 41, 12, 3], [1, 9, 9, 70, 2, 45, 18, 6, 31, 27, 110, 55]])


def run_with_captures(model, ids=IDS):
    """(block outputs, model output) of one forward pass."""
    captured = []
    hooks = [b.register_forward_hook(lambda *call: captured.append(call[2])) for b in Layout.of(model).blocks]
    with torch.no_grad():
        out = model(ids, output_hidden_states=True, use_cache=False)
    for hook in hooks:
        hook.remove()
    return captured, out


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_block_outputs_are_the_models_hidden_states(name):
    model = tiny_model(name)
    layout = Layout.of(model)
    captured, out = run_with_captures(model)

    assert (layout.n_layers, layout.d_model) == (N_LAYERS, D_MODEL)
    assert len(out.hidden_states) == N_LAYERS + 1
    for layer in range(N_LAYERS - 1):
        assert torch.equal(block_output(captured[layer]), out.hidden_states[layer + 1])
    last = block_output(captured[-1])
    if layout.final_norm is not None:
        assert not torch.equal(last, out.hidden_states[-1])
        last = layout.final_norm(last)
    if name == "opt_postnorm":
        assert layout.final_norm is None
        last = layout.stack.project_out(last)
    assert torch.equal(last, out.hidden_states[-1])
    verify(model, layout)


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_embeddings_and_head_are_found(name):
    model = tiny_model(name)
    layout = Layout.of(model)
    _, out = run_with_captures(model)
    logits = layout.lm_head(out.hidden_states[-1])
    # scaled and capped logits (Cohere, Granite, Gemma) are increasing functions of the head's
    assert torch.equal(logits.argsort(dim=-1), out.logits.argsort(dim=-1))
    assert layout.embeddings(IDS).shape[:2] == IDS.shape


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_replacing_a_block_output_replaces_the_residual_stream(name):
    """Patching layer 1 of one prompt with another prompt's stream gives the other prompt's logits."""
    model = tiny_model(name)
    layout = Layout.of(model)
    captured, out = run_with_captures(model)
    donor = block_output(captured[1])[:1]

    def patch(module, args, output):
        return replace_block_output(output, donor)

    hook = layout.blocks[1].register_forward_hook(patch)
    patched = model(IDS[1:], use_cache=False).logits
    hook.remove()
    torch.testing.assert_close(patched, out.logits[:1], rtol=1e-5, atol=1e-5)


def test_some_architectures_return_tuples_and_some_tensors():
    kinds = {name: type(run_with_captures(tiny_model(name))[0][0]) for name in ("llama", "gptj", "bloom")}
    assert kinds == {"llama": torch.Tensor, "gptj": tuple, "bloom": tuple}


def test_replacing_in_a_tuple_keeps_the_rest():
    h, new, weights = torch.zeros(1, 2, 3), torch.ones(1, 2, 3), torch.rand(4)
    replaced = replace_block_output((h, weights), new)
    assert replaced[0] is new
    assert replaced[1] is weights
    assert replace_block_output(h, new) is new


def test_text_decoder_of_a_multimodal_model():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": 128,
        "hidden_size": D_MODEL,
        "intermediate_size": 64,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": N_LAYERS,  # as long as the text stack, so that length alone cannot tell them apart
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, image_token_index=127, boi_token_index=126)
    model = Gemma3ForConditionalGeneration(config).eval()
    layout = Layout.of(model)
    assert layout.stack is model.model.language_model
    assert layout.blocks is model.model.language_model.layers
    verify(model, layout)


class _ScalesAfterwards(nn.Module):
    """A block whose module output is not what goes on: a stand-in for an architecture of another shape."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *args, **kwargs):
        return self.block(*args, **kwargs) * 2


def test_verify_refuses_a_block_output_that_is_not_the_residual_stream():
    model = tiny_model("llama")
    layout = Layout.of(model)
    run_with_captures(model)  # transformers installs its own capture on the true blocks
    inner = nn.ModuleList(layout.blocks)
    model.model.layers[1] = _ScalesAfterwards(inner[1])
    with pytest.raises(BadInput, match=r"layout\.py"):
        verify(model, Layout.of(model))


def test_a_model_without_a_list_of_blocks_is_refused_with_the_way_to_add_it():
    model = tiny_model("llama")
    model.model.layers = nn.ModuleList(list(model.model.layers)[:3])
    with pytest.raises(BadInput, match=r"LlamaForCausalLM.*one list of 4 blocks.*layout\.py"):
        Layout.of(model)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(BadInput, match="no output embeddings"):
        Layout.of(tiny_model("llama").model)
