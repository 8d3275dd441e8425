"""What the router chose, against a recomputation from its logits; and how many parameters a model has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.auto import CONFIG_MAPPING

from tasks.errors import BadInput
from tasks.models.experts import moe_blocks, parameter_counts, routing
from tasks.models.layout import Layout
from tasks.models.points import norm_points, watching
from tests.models.tiny import ALL_ARCHITECTURES, D_MODEL, EXPERT_MODELS, N_LAYERS, tiny_config, tiny_model

IDS = torch.tensor([[1, 17, 33, 5, 99, 64, 7, 23, 80, 41, 12, 3], [1, 9, 9, 70, 2, 45, 18, 6, 31, 27, 110, 55]])
DENSE_FIRST = ("glm4_moe", "deepseek_v3")
SHARED = ("qwen2_moe", "qwen3_next", "glm4_moe", "deepseek_v3", "nemotron_h")
GATED = ("qwen2_moe", "qwen3_next")
NAMES = [*EXPERT_MODELS, "nemotron_h"]


def expert_layers(name: str) -> list[int]:
    if name == "nemotron_h":
        return [1]
    return list(range(1 if name in DENSE_FIRST else 0, N_LAYERS))


def mixture(model, layer: int) -> nn.Module:
    """The module with router, experts and shared experts."""
    block = Layout.of(model).blocks[layer]
    return block.mixer if hasattr(block, "mixer") else block.mlp


def choice(name: str, config, moe: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts, weights) [tokens, k] from the router's weights alone, as each family's paper has it."""
    router = moe.router if name == "gpt_oss" else moe.gate
    k = config.num_experts_per_tok
    logits = x.float() @ router.weight.T.float()
    if name == "gpt_oss":
        best = (logits + router.bias).sort(dim=-1, descending=True)
        return best.indices[:, :k], best.values[:, :k].softmax(dim=-1)
    if name in ("glm4_moe", "deepseek_v3", "nemotron_h"):
        scores = logits.sigmoid()
        groups = (scores + router.e_score_correction_bias).unflatten(-1, (config.n_group, -1))
        of_group = groups.sort(dim=-1, descending=True).values[..., :2].sum(dim=-1)
        kept = of_group >= of_group.sort(dim=-1, descending=True).values[:, config.topk_group - 1, None]
        ranked = groups.masked_fill(~kept[..., None], -torch.inf).flatten(1).sort(dim=-1, descending=True)
        experts = ranked.indices[:, :k]
        weights = scores.gather(1, experts)
        if config.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return experts, weights * config.routed_scaling_factor
    best = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    weights = best.values[:, :k]
    if name == "mixtral" or config.norm_topk_prob:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return best.indices[:, :k], weights


def expert_output(name: str, experts: nn.Module, e: int, x: torch.Tensor) -> torch.Tensor:
    """What expert `e` writes for the token vectors x [tokens, d]."""
    if name == "gpt_oss":
        both = x @ experts.gate_up_proj[e] + experts.gate_up_proj_bias[e]
        gate, up = both[:, ::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
        return ((up + 1) * gate * torch.sigmoid(1.702 * gate)) @ experts.down_proj[e] + experts.down_proj_bias[e]
    if name == "nemotron_h":
        return F.relu(x @ experts.up_proj[e].T).square() @ experts.down_proj[e].T
    gate, up = (x @ experts.gate_up_proj[e].T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ experts.down_proj[e].T


def observed(model, ids=IDS):
    """(routings, what entered each layer's FFN, what each mixture returned) of one pass."""
    layout = Layout.of(model)
    points = [p for p in norm_points(model, layout) if p.kind == "mlp"]
    blocks = moe_blocks(layout)
    routings, inputs, returned = [], {}, {}
    hooks = []
    for block in blocks:

        def hook(module, args, output, layer=block.layer):
            returned[layer] = (output if isinstance(output, torch.Tensor) else output[0]).flatten(0, -2)

        hooks.append(mixture(model, block.layer).register_forward_hook(hook))

    def see(i, x):
        inputs[points[i].layer] = x.flatten(0, -2).clone()

    with routing(blocks, routings.append), watching(points, see):
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return routings, inputs, returned


@pytest.mark.parametrize("name", NAMES)
def test_experts_and_weights_are_those_of_the_routers_logits(name):
    model = tiny_model(name)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("e_score_correction_bias"):  # it decides who is chosen, not the weight
            buffer.copy_(torch.linspace(-0.2, 0.2, len(buffer)))
    routings, inputs, _ = observed(model)
    assert [r.layer for r in routings] == expert_layers(name)
    used = set()
    for r in routings:
        moe = mixture(model, r.layer)
        experts, weights = choice(name, model.config, moe, inputs[r.layer])
        ours, theirs = r.experts.argsort(dim=-1), experts.argsort(dim=-1)
        assert r.experts.dtype == torch.int64
        assert torch.equal(r.experts.gather(1, ours), experts.gather(1, theirs))
        torch.testing.assert_close(r.weights.gather(1, ours).float(), weights.gather(1, theirs), rtol=1e-5, atol=1e-6)
        used |= set(r.experts.flatten().tolist())
    assert len(used) > model.config.num_experts_per_tok


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_chosen_experts_one_by_one(name):
    model = tiny_model(name)
    routings, inputs, returned = observed(model)
    for r in routings:
        moe, x = mixture(model, r.layer), inputs[r.layer]
        naive = torch.zeros_like(x)
        for token in range(len(x)):
            for e, weight in zip(r.experts[token], r.weights[token], strict=True):
                naive[token] += weight * expert_output(name, moe.experts, int(e), x[token : token + 1])[0]
        torch.testing.assert_close(r.routed_output, naive, rtol=1e-4, atol=1e-5)
        total = r.routed_output
        assert (r.shared_output is not None) == (name in SHARED)
        if r.shared_output is not None:
            shared = moe.shared_expert(x) if name in GATED else moe.shared_experts(x)
            if name in GATED:
                shared = torch.sigmoid(moe.shared_expert_gate(x)) * shared
            assert torch.equal(r.shared_output, shared)
            assert r.shared_output.abs().max() > 0
            total = total + r.shared_output
        assert torch.equal(total, returned[r.layer])


@pytest.mark.parametrize("name", NAMES)
def test_blocks(name):
    model = tiny_model(name)
    blocks = moe_blocks(Layout.of(model))
    assert [b.layer for b in blocks] == expert_layers(name)
    assert {b.n_experts for b in blocks} == {8 if name in DENSE_FIRST else 4}
    assert all((b.shared is not None) == (name in SHARED) for b in blocks)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["mixtral", "qwen3_next", "glm4_moe"])
def test_a_batch_in_bfloat16_is_its_rows_one_after_the_other(name):
    model = tiny_model(name).bfloat16()
    routings, inputs, _ = observed(model)
    assert all(len(r.experts) == len(r.routed_output) == IDS.numel() for r in routings)
    first = routings[0]
    moe = mixture(model, first.layer)
    for token in (0, 5, 13, 23):
        chosen = choice(name, model.config, moe, inputs[first.layer][token : token + 1])[0]
        assert set(first.experts[token].tolist()) == set(chosen[0].tolist())


def test_a_dense_model_has_none():
    for name in set(ALL_ARCHITECTURES) - set(NAMES):
        assert moe_blocks(Layout.of(tiny_model(name))) == []


def test_an_aborted_pass_leaves_nothing_behind():
    model = tiny_model("qwen3_next")
    blocks = moe_blocks(Layout.of(model))
    seen = []

    def fail(*args):
        raise ZeroDivisionError

    with routing(blocks, seen.append):
        hook = blocks[1].experts.register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            model(IDS)
        hook.remove()
        del seen[:]
        model(IDS[:1])
    assert [r.layer for r in seen] == [0, 1, 2, 3]
    assert {len(r.experts) for r in seen} == {len(r.shared_output) for r in seen} == {IDS.shape[1]}


def test_experts_that_do_not_add_up_are_refused():
    model = tiny_model("glm4_moe")
    moe = mixture(model, 1)
    plain = moe.forward
    moe.forward = lambda x: 2 * plain(x)
    with pytest.raises(BadInput, match=r"block 1 do not add up.*experts\.py"):
        moe_blocks(Layout.of(model))


@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_parameter_counts_of_every_architecture(name):
    model = tiny_model(name)
    total, active = parameter_counts(tiny_config(name))
    assert total == sum(p.numel() for p in model.parameters())
    blocks = moe_blocks(Layout.of(model))
    idle = 0
    for block in blocks:
        of_one = sum(p[0].numel() for p in block.experts.parameters())
        idle += of_one * (block.n_experts - model.config.num_experts_per_tok)
    assert active == total - idle
    assert (active < total) == bool(blocks)


# what config.json of the published models says, and the sizes that their authors report
PUBLISHED = [
    ("mixtral", {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
                 "num_experts_per_tok": 2}, 46.70e9, 12.88e9),  # Mixtral-8x7B
    ("olmoe", {"vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16,
               "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64,
               "num_experts_per_tok": 8}, 6.919e9, 1.282e9),  # OLMoE-1B-7B
    ("gpt_oss", {"vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
                 "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 128,
                 "num_experts_per_tok": 4}, 116.83e9, 5.71e9),  # GPT-OSS-120B: 5.13e9 without the embeddings
    ("qwen3_moe", {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
                   "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
                   "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
                   "tie_word_embeddings": False}, 30.53e9, 3.35e9),  # Qwen3-30B-A3B
    ("gpt2", {}, 124.44e6, 124.44e6),  # the head is the embeddings, once
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "sizes", "total", "active"), PUBLISHED)
def test_parameter_counts_of_published_models(model_type, sizes, total, active):
    counted = parameter_counts(CONFIG_MAPPING[model_type](**sizes))
    assert counted == (pytest.approx(total, rel=1e-3), pytest.approx(active, rel=1e-3))


def test_a_configuration_without_the_number_per_token_is_refused():
    config = tiny_config("mixtral")
    config.num_experts_per_tok = 0
    with pytest.raises(BadInput, match="how many experts"):
        parameter_counts(config)


def test_width_of_a_routing():
    model = tiny_model("olmoe")
    routings, _, _ = observed(model)
    assert {(r.experts.shape, r.weights.shape, r.routed_output.shape) for r in routings} == {
        ((IDS.numel(), 2), (IDS.numel(), 2), (IDS.numel(), D_MODEL))
    }
