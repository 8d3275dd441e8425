"""Points against a table of each architecture's norms, and against captures that replace `forward` by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.errors import BadInput
from tasks.models.layout import Layout
from tasks.models.points import norm_points, residual_points, rewriting, watching
from tests.models.tiny import ALL_ARCHITECTURES, D_MODEL, N_LAYERS, tiny_model

IDS = torch.tensor([[1, 17, 33, 5, 99, 64, 7, 23, 80, 41, 12, 3], [1, 9, 9, 70, 2, 45, 18, 6, 31, 27, 110, 55]])
DIMS = [3, 17, 40]

LLAMA = (("ln_attn", "input_layernorm", "out"), ("ln_mlp", "post_attention_layernorm", "out"))
GPT2 = (("ln_attn", "ln_1", "out"), ("ln_mlp", "ln_2", "out"))
POST_NORM = (("attn_input", "self_attn.q_proj", "in"), ("mlp_input", "mlp.gate_proj", "in"))
ONE_NORM = (("ln", "input_layernorm", "out"),)
SPECIAL = {
    "gemma2": (("ln_attn", "input_layernorm", "out"), ("ln_mlp", "pre_feedforward_layernorm", "out")),
    "gemma3": (("ln_attn", "input_layernorm", "out"), ("ln_mlp", "pre_feedforward_layernorm", "out")),
    "gpt2": GPT2,
    "gpt_neo": GPT2,
    "gpt_bigcode": GPT2,
    "gptj": (("ln", "ln_1", "out"),),
    "opt": (("ln_attn", "self_attn_layer_norm", "out"), ("ln_mlp", "final_layer_norm", "out")),
    "opt_postnorm": (("attn_input", "self_attn.q_proj", "in"), ("ln_mlp", "self_attn_layer_norm", "out")),
    "olmo2": POST_NORM,
    "olmo3": POST_NORM,
    "phi": ONE_NORM,
    "cohere": ONE_NORM,
    "falcon": ONE_NORM,
    "stablelm_parallel": ONE_NORM,
    "falcon_two_norms": (("ln_attn", "ln_attn", "out"), ("ln_mlp", "ln_mlp", "out")),
}
"""Point -> the module inside the block that shows it, and which side of it. What is not here is as in Llama."""


def expected(name: str) -> list[tuple[str, int, str, str]]:
    """(point, layer, module in the block, side) in forward order."""
    if name == "nemotron_h":
        return [(f"layer_{i}_{p}", i, "norm", "out") for i, p in enumerate(["ln_attn", "ln_mlp", "ln_attn", "ln_mlp"])]
    return [
        (f"layer_{layer}_{point}", layer, path, side)
        for layer in range(N_LAYERS)
        for point, path, side in SPECIAL.get(name, LLAMA)
    ]


def captured_by_hand(model: nn.Module, layout: Layout, name: str, ids=IDS) -> list[torch.Tensor]:
    """The expected tensors [batch, position, d], by replacing `forward` of the modules that the table names."""
    seen = []
    replaced = []
    for _, layer, path, side in expected(name):
        module = layout.blocks[layer].get_submodule(path)

        def forward(x, *args, plain=module.forward, side=side, **kwargs):
            y = plain(x, *args, **kwargs)
            seen.append((x if side == "in" else y).clone().view(*ids.shape, D_MODEL))
            return y

        module.forward = forward
        replaced.append(module)
    model(ids, use_cache=False)
    for module in replaced:
        del module.forward
    return seen


def captured(model, points, ids=IDS, **inputs) -> tuple[list[int], list[torch.Tensor]]:
    order, seen = [], []

    def see(i, x):
        order.append(i)
        seen.append(x.clone())

    with watching(points, see):
        model(ids, use_cache=False, **inputs)
    return order, seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_points_are_what_enters_attention_and_ffn(name, dtype):
    model = tiny_model(name).to(dtype)
    layout = Layout.of(model)
    points = norm_points(model, layout)
    assert [(p.name, p.layer) for p in points] == [(point, layer) for point, layer, _, _ in expected(name)]
    kinds = {"ln_attn": "attn", "attn_input": "attn", "ln_mlp": "mlp", "mlp_input": "mlp", "ln": "both"}
    assert [p.kind for p in points] == [kinds[p.name.split("_", 2)[2]] for p in points]
    order, seen = captured(model, points)
    by_hand = captured_by_hand(model, layout, name)
    assert order == list(range(len(points)))
    assert len(seen) == len(by_hand)
    for ours, theirs in zip(seen, by_hand, strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, theirs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for b in layout.blocks for m in b.modules())


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_residual_points_are_the_hidden_states(name):
    model = tiny_model(name)
    points = residual_points(Layout.of(model))
    assert [p.name for p in points] == [f"layer_{i}_resid_post" for i in range(N_LAYERS)]
    order, seen = captured(model, points)
    hidden = model(IDS, use_cache=False, output_hidden_states=True).hidden_states
    assert order == list(range(N_LAYERS))
    for ours, theirs in zip(seen[:-1], hidden[1:-1], strict=True):
        assert torch.equal(ours, theirs)


def zeroed(i, x):
    x = x.clone()
    x[..., DIMS] = 0
    return x


def zero_by_hand(module: nn.Module, side: str) -> None:
    """From now on some dimensions of what goes into `module`, or comes out, are zero."""

    def forward(x, *args, plain=module.forward, **kwargs):
        y = plain(zeroed(0, x) if side == "in" else x, *args, **kwargs)
        return zeroed(0, y) if side == "out" else y

    module.forward = forward


@pytest.mark.parametrize("name", sorted(set(ALL_ARCHITECTURES) - {"opt_postnorm", "olmo2", "olmo3"}))
def test_zeroing_dimensions_at_every_point_is_zeroing_what_the_norms_return(name):
    model = tiny_model(name)
    plain = model(IDS, use_cache=False).logits
    points = norm_points(model, Layout.of(model))
    with rewriting(points, zeroed):
        ours = model(IDS, use_cache=False).logits
    assert not torch.allclose(ours, plain, atol=1e-3)
    assert torch.equal(model(IDS, use_cache=False).logits, plain)
    for _, layer, path, side in expected(name):
        zero_by_hand(Layout.of(model).blocks[layer].get_submodule(path), side)
    assert torch.equal(model(IDS, use_cache=False).logits, ours)


@pytest.mark.parametrize("name", ["olmo2", "olmo3", "opt_postnorm"])
def test_zeroing_what_attention_and_ffn_receive_leaves_the_residual_stream_alone(name):
    """Of a post-norm model the stream itself goes in: each sublayer gets zeros, the stream goes on without them."""
    model = tiny_model(name)
    layout = Layout.of(model)
    with rewriting(norm_points(model, layout), zeroed):
        ours = model(IDS, use_cache=False).logits
    first = ["fc1"] if name == "opt_postnorm" else ["mlp.gate_proj", "mlp.up_proj"]
    for block in layout.blocks:
        for path in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", *first]:
            zero_by_hand(block.get_submodule(path), "in")
    assert torch.equal(model(IDS, use_cache=False).logits, ours)


@pytest.mark.parametrize("name", ["gptj", "bloom"])
def test_rewriting_the_residual_stream(name):
    model = tiny_model(name)
    layout = Layout.of(model)
    with rewriting(residual_points(layout), zeroed):
        logits = model(IDS, use_cache=False).logits
    for block in layout.blocks:

        def forward(*args, plain=block.forward, **kwargs):
            h, *rest = plain(*args, **kwargs)
            return (zeroed(0, h), *rest)

        block.forward = forward
    assert torch.equal(model(IDS, use_cache=False).logits, logits)


def test_watching_sees_what_rewriting_left():
    model = tiny_model("llama")
    points = norm_points(model, Layout.of(model))
    with rewriting(points, zeroed):
        _, seen = captured(model, points)
    assert all((x[..., DIMS] == 0).all() for x in seen)


def test_no_copy_is_made():
    model = tiny_model("llama")
    layout = Layout.of(model)
    outputs, inputs = [], []
    layout.blocks[1].input_layernorm.register_forward_hook(lambda m, a, out: outputs.append(out))
    with watching(norm_points(model, layout)[2:3], lambda i, x: inputs.append(x)):
        model(IDS, use_cache=False)
    assert inputs[0] is outputs[-1]


@pytest.mark.parametrize("ids", [IDS, IDS[:1], IDS[:, :1]])
def test_shapes_of_points_that_the_model_flattens(ids):
    model = tiny_model("opt")
    layout = Layout.of(model)
    points = [p for p in norm_points(model, layout) if p.kind == "mlp"]
    _, seen = captured(model, points, ids)
    assert {x.shape for x in seen} == {(*ids.shape, D_MODEL)}
    assert len(seen) == N_LAYERS


def test_one_tensor_for_both_without_a_norm_is_one_point():
    model = tiny_model("gptj")
    layout = Layout.of(model)
    for block in layout.blocks:
        block.ln_1 = nn.Identity()
    points = norm_points(model, layout)
    assert [p.name for p in points] == [f"layer_{i}_input" for i in range(N_LAYERS)]
    with rewriting(points, zeroed):
        ours = model(IDS, use_cache=False).logits
    for block in layout.blocks:
        for path in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in"):
            zero_by_hand(block.get_submodule(path), "in")
    assert torch.equal(model(IDS, use_cache=False).logits, ours)


def test_an_error_inside_leaves_no_hook():
    model = tiny_model("opt")
    points = norm_points(model, Layout.of(model))

    def fail(i, x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), watching(points, fail):
        model(IDS)
    model(IDS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in Layout.of(model).blocks.modules())


class _Opaque(nn.Module):
    """A block that does everything in one step."""

    def __init__(self):
        super().__init__()
        self.everything = nn.Linear(D_MODEL, D_MODEL)

    def forward(self, hidden_states, *args, **kwargs):
        return self.everything(hidden_states)


class _NormAttentionNorm(nn.Module):
    """Norm and attention in one child, as in DBRX."""

    def __init__(self, block):
        super().__init__()
        self.input_layernorm, self.self_attn = block.input_layernorm, block.self_attn

    def forward(self, hidden_states, **kwargs):
        return self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]


class _Wrapped(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.norm_attn_norm, self.norm_2, self.mlp = (
            _NormAttentionNorm(block),
            block.post_attention_layernorm,
            block.mlp,
        )

    def forward(self, hidden_states, **kwargs):
        hidden_states = hidden_states + self.norm_attn_norm(hidden_states, **kwargs)
        return hidden_states + self.mlp(self.norm_2(hidden_states))


@pytest.mark.parametrize("other", [lambda block: _Opaque(), _Wrapped])
def test_a_block_of_another_shape_is_refused_with_the_way_to_add_it(other):
    model = tiny_model("llama")
    model.model.layers[2] = other(model.model.layers[2])
    with pytest.raises(BadInput, match=r"LlamaForCausalLM.*in block 2 .*points\.py"):
        norm_points(model, Layout.of(model))


def test_blocks_that_share_their_modules_are_refused():
    model = tiny_model("llama")
    model.model.layers[3].mlp = model.model.layers[1].mlp
    with pytest.raises(BadInput, match="one module in several blocks"):
        norm_points(model, Layout.of(model))
