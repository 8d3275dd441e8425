"""Tiny random models of every architecture the product claims to support, and a loadable tiny model folder.

The parameters are drawn with visible scale (norm gains and biases included), so that a wrong norm, a dropped
bias or a wrong position changes the numbers instead of hiding behind the zeros and ones of a fresh model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import CONFIG_MAPPING

from tasks.models.load import attention_implementation

N_LAYERS = 4
D_MODEL = 64
VOCAB_SIZE = 128

_COMMON = {
    "hidden_size": D_MODEL,
    "intermediate_size": 128,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_NO_GROUPS = {k: v for k, v in _COMMON.items() if k != "num_key_value_heads"}
_GPT2_STYLE = {"n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": 4, "n_positions": 256}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GROUPED_EXPERTS = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_FALCON = {k: _COMMON[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
_WINDOW = 8  # shorter than the tests' sequences, so that the sliding mask matters

# name -> (model_type of the config, arguments of the config)
_SPECS: dict[str, tuple[str, dict]] = {
    "llama": ("llama", _COMMON),
    "qwen2": ("qwen2", _COMMON),
    "qwen3": ("qwen3", _COMMON | {"head_dim": 16}),
    "mistral": ("mistral", _COMMON | {"sliding_window": _WINDOW}),
    "gemma": ("gemma", _COMMON | {"head_dim": 16}),
    "gemma2": ("gemma2", _COMMON | {"head_dim": 16, "sliding_window": _WINDOW, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "gemma3_text",
        _COMMON | {"head_dim": 16, "sliding_window": _WINDOW, "sliding_window_pattern": 2},
    ),
    "gpt2": ("gpt2", _GPT2_STYLE),
    "opt": (
        "opt",
        _NO_GROUPS | {"ffn_dim": 128, "word_embed_proj_dim": D_MODEL, "do_layer_norm_before": True},
    ),
    "opt_postnorm": (  # like opt-350m: norms after each sublayer, projections around the stack, no final norm
        "opt",
        _NO_GROUPS | {"ffn_dim": 128, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    ),
    "gpt_neox": ("gpt_neox", _NO_GROUPS),
    "phi": ("phi", _COMMON),
    "phi3": ("phi3", _COMMON | {"pad_token_id": 0}),
    "olmo": ("olmo", _COMMON),
    "olmo2": ("olmo2", _COMMON),
    "olmo3": ("olmo3", _COMMON | {"sliding_window": _WINDOW}),
    "olmoe": ("olmoe", _COMMON | {"num_experts": 4, "num_experts_per_tok": 2}),
    "mixtral": ("mixtral", _COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", _COMMON | _EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("qwen3_moe", _COMMON | _EXPERTS | {"head_dim": 16}),
    "gpt_oss": (
        "gpt_oss",
        _COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": _WINDOW},
    ),
    "gptj": ("gptj", _GPT2_STYLE | {"rotary_dim": 16}),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": D_MODEL,
            "num_layers": N_LAYERS,
            "num_heads": 4,
            "attention_types": [[["global", "local"], N_LAYERS // 2]],
            "window_size": _WINDOW,
            "max_position_embeddings": 256,
        },
    ),
    "gpt_bigcode": ("gpt_bigcode", _GPT2_STYLE),
    "falcon": ("falcon", _FALCON),
    "bloom": ("bloom", {"hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": 4}),
    "stablelm": ("stablelm", _COMMON),
    "starcoder2": ("starcoder2", _COMMON),
    "smollm3": ("smollm3", _COMMON | {"pad_token_id": 0}),
    "granite": ("granite", _COMMON),
    "cohere": ("cohere", _COMMON),
    "glm4": ("glm4", _COMMON | {"head_dim": 16, "pad_token_id": 0}),
}

# What hooks on the blocks take and the engines do not, or need not be tried with.
_MORE_SPECS: dict[str, tuple[str, dict]] = {
    "qwen3_next": (  # like Qwen3-Next-80B-A3B: three blocks of linear attention, one of full attention
        "qwen3_next",
        _COMMON
        | _EXPERTS
        | {
            "head_dim": 16,
            "shared_expert_intermediate_size": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
    ),
    "glm4_moe": (  # like GLM-4.5-Air: the first block is dense
        "glm4_moe",
        _COMMON | _GROUPED_EXPERTS | {"head_dim": 16, "use_qk_norm": True},
    ),
    "deepseek_v3": (
        "deepseek_v3",
        _NO_GROUPS
        | _GROUPED_EXPERTS
        | {
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
        },
    ),
    "falcon_two_norms": (  # like falcon-40b: attention and FFN in parallel, each with a norm of its own
        "falcon",
        _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 2},
    ),
    "falcon_sequential": ("falcon", _FALCON | {"parallel_attn": False}),  # like falcon-rw-1b
    "stablelm_parallel": ("stablelm", _COMMON | {"use_parallel_residual": True}),  # like stablelm-2-12b
    "bloom_residual_after_norm": (
        "bloom",
        {
            "hidden_size": D_MODEL,
            "n_layer": N_LAYERS,
            "n_head": 4,
            "apply_residual_connection_post_layernorm": True,
        },
    ),
    "nemotron_h": (  # blocks of one part each: state space, attention, experts, dense
        "nemotron_h",
        _COMMON
        | {
            "layers_block_type": ["mamba", "moe", "attention", "mlp"],
            "head_dim": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 2,
            "chunk_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
}

ARCHITECTURES: list[str] = list(_SPECS)
"""Those that every engine is tried with."""
ALL_ARCHITECTURES: list[str] = [*_SPECS, *_MORE_SPECS]
LAYOUT_CLASSES: list[str] = [
    "llama",  # the blocks at model.layers, a head of its own
    "gemma3",  # embeddings that are scaled, and the head's too; two kinds of attention masks
    "gpt2",  # the blocks at transformer.h, weights the other way round
    "gpt_neox",  # attention and FFN in parallel
    "opt_postnorm",  # projections around the stack, no final norm
    "bloom",  # a norm after the embeddings, positions as a bias of the attention
    "falcon_two_norms",  # in parallel, each with a norm of its own
    "mixtral",  # experts that its checkpoint keeps one by one
    "gpt_oss",  # experts that its checkpoint keeps as one tensor
    "qwen3_next",  # linear attention
    "deepseek_v3",  # compressed keys and values, groups of experts
    "nemotron_h",  # blocks of one part each
]
"""One architecture of each way in which a model's parts lie."""
EXPERT_MODELS: list[str] = [
    "olmoe",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "qwen3_next",
    "glm4_moe",
    "deepseek_v3",
]
"""Mixtures of experts among all."""


def by_layout(names: Sequence[str]) -> list:
    """Parameters of a costly test: the architectures of ``LAYOUT_CLASSES`` in every run, the others nightly."""
    return [name if name in LAYOUT_CLASSES else pytest.param(name, marks=pytest.mark.nightly) for name in names]


def tiny_config(name: str, **overrides):
    """Configuration of the tiny model `name`; `overrides` are arguments of its config class."""
    model_type, kwargs = (_SPECS | _MORE_SPECS)[name]
    tokens = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return CONFIG_MAPPING[model_type](**(tokens | kwargs | overrides))


def tiny_model(name: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """A random model of architecture `name`: float32, eval mode, no gradients, 4 layers, width 64, 128 tokens.

    The same (name, seed, overrides) gives the same weights; the global random state stays untouched.
    """
    with torch.random.fork_rng(devices=[]):
        config = tiny_config(name, **overrides)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention_implementation(config)
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise * 0.15)
            else:
                parameter.add_(noise * 0.1)
    return model.eval().requires_grad_(False)


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_TEXT = [
    "The player has 140 dollars and may bet 10 dollars or stop.",
    "The player has 20 dollars left and wants to win it all back.",
    "Game history: Round 1: Bet $10, Win. Round 2: Bet $100, Loss.",
    "Choose: 1) Bet $10 2) Stop. Choice: 2) Stop because the risk is too high.",
    "Choice: 1) Bet because one more win would be enough to reach the target amount.",
    "What is the capital of France? Answer: A) Paris B) Rome C) Madrid D) Berlin",
]


def tiny_tokenizer(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (every string round-trips) with <pad>=0, <s>=1, </s>=2.

    It prepends <s> by default and its chat template writes <s> itself, as Llama's do: whoever renders a chat
    and tokenizes the text again gets it twice.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tiny_model(folder: str | Path, name: str = "llama", seed: int = 0, **overrides) -> Path:
    """Write a tiny model and its tokenizer as a model folder (safetensors), and return the folder.

    The vocabulary is the tokenizer's (400 tokens unless the text runs out of merges).
    """
    folder = Path(folder)
    tokenizer = tiny_tokenizer()
    model = tiny_model(name, seed, **({"vocab_size": len(tokenizer)} | overrides))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
