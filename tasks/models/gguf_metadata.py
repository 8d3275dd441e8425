"""What a GGUF file's metadata makes of a model. No torch here.

Closed world: each key under the architecture's name and under `tokenizer.` is honoured, or known to change nothing,
or refused. Keys and defaults are llama.cpp's (its `llama-arch.cpp`, `llama-model.cpp` and `convert_hf_to_gguf.py`),
the names on the other side transformers'.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tasks.models.gguf_header import GgufFile
from tasks.models.gguf_rope import SCALING, rope_parameters
from tasks.models.sources import Source

_OTHER_FORMAT = "use the model in transformers format"

_SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_GEMMA = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


@dataclass(frozen=True)
class _Architecture:
    model_type: str
    """Of transformers."""
    keys: dict[str, str]
    """Key without the architecture's name -> field of the configuration."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """What llama.cpp computes for this architecture though no key says so."""
    partial_rotary: bool = False
    """Whether fewer dimensions than a head has may be rotated."""


ARCHITECTURES = {
    "llama": _Architecture("llama", _SIZES | _RMS),
    "qwen2": _Architecture("qwen2", _SIZES | _RMS),
    "qwen3": _Architecture("qwen3", _SIZES | _RMS),
    "qwen2moe": _Architecture(
        "qwen2_moe",
        _SIZES | _RMS | _EXPERTS | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
    ),
    "qwen3moe": _Architecture("qwen3_moe", _SIZES | _RMS | _EXPERTS, {"norm_topk_prob": True}),
    "gemma2": _Architecture("gemma2", _SIZES | _RMS | _GEMMA),
    "gemma3": _Architecture("gemma3_text", _SIZES | _RMS | _GEMMA),
    "phi3": _Architecture("phi3", _SIZES | _RMS | {"attention.sliding_window": "sliding_window"}, {}, True),
    "gpt2": _Architecture(
        "gpt2",
        {
            "context_length": "n_positions",
            "block_count": "n_layer",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.head_count_kv": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
    ),
    "starcoder2": _Architecture("starcoder2", _SIZES | {"attention.layer_norm_epsilon": "norm_epsilon"}),
    "stablelm": _Architecture(
        "stablelm",
        _SIZES | {"attention.layer_norm_epsilon": "layer_norm_eps", "use_parallel_residual": "use_parallel_residual"},
        {},
        True,
    ),
}
"""Those whose reading is held by a test against transformers' own model."""

_GEMMAS_OF_HIDDEN_SIZE = {("gemma2", 46), ("gemma3", 62)}
"""(architecture, blocks) of the 27B models: their scores are scaled by hidden_size / heads, not by the head's width."""

_ONLY = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_norm": (False,),
    "expert_weights_scale": (0.0, 1.0),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "attention.sliding_window": (0,),
    "pooling_type": (0,),
    "nextn_predict_layers": (0,),
}
"""Keys that architectures may carry without honouring them: only with values that change nothing."""
_CHANGES_NOTHING = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned"}
_DERIVED = {
    "attention.key_length",
    "attention.value_length",
    "attention.scale",
    "attention.sliding_window_pattern",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
}
_TOKENIZER_READ = {
    *(f"ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "scores", "merges")),
    *(f"ggml.{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "padding")),
    *(f"ggml.add_{name}" for name in ("bos_token", "eos_token", "space_prefix")),
    "chat_template",
}
_TOKENIZER_CHANGES_NOTHING = {
    *(f"ggml.{name}_token_id" for name in ("seperator", "mask", "cls", "prefix", "suffix", "middle")),
    *(f"ggml.fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep", "sep")),
    "ggml.token_type_count",
    "ggml.remove_extra_whitespaces",
    "ggml.added_tokens",
    "huggingface.json",
    "chat_templates",
}


def configuration(source: Source, file: GgufFile) -> dict[str, Any]:
    """`model_type` and arguments of its configuration class.

    Raises BadInput for an architecture or a key that can't be honoured, naming it.
    """
    architecture = _architecture(source, file)
    prefix = f"{file.architecture}."
    given = {key.removeprefix(prefix): file.get(key) for key in file.fields if key.startswith(prefix)}
    _refuse_what_is_not_honoured(source, file, architecture, given)
    found = {
        name: _uniform(source, prefix + key, given[key]) for key, name in architecture.keys.items() if key in given
    }
    for key in ("block_count", "embedding_length", "attention.head_count"):
        if key not in given:
            raise source.bad(f"the file says nothing about {prefix + key!r}", "use a GGUF file of a language model")
    heads, width = given["attention.head_count"], given["embedding_length"]
    head_dim = given.get("attention.key_length") or width // _uniform(source, prefix + "attention.head_count", heads)
    if given.get("attention.value_length", head_dim) != head_dim:
        raise _refused(source, prefix + "attention.value_length", given["attention.value_length"])
    rotary = given.get("rope.dimension_count", head_dim)
    if rotary != head_dim and not architecture.partial_rotary:
        raise _refused(source, prefix + "rope.dimension_count", rotary)
    if file.architecture != "gpt2":
        found |= {"head_dim": head_dim, "rope_parameters": rope_parameters(source, file, given, rotary, head_dim)}
    if file.architecture.startswith("gemma"):
        found |= _gemma(file.architecture, given, head_dim)
    if "sliding_window" in found:
        found["sliding_window"] = found["sliding_window"] or None
    if file.architecture == "phi3" and (original := given.get("rope.scaling.original_context_length")):
        found["original_max_position_embeddings"] = original
    if file.architecture == "stablelm":
        found["use_qkv_bias"] = "blk.0.attn_q.bias" in file.tensors
        found["qk_layernorm"] = "blk.0.attn_q_norm.weight" in file.tensors
    if "token_embd.weight" in file.tensors:
        found["vocab_size"] = int(file.tensors["token_embd.weight"].shape[1])
    tokens = {name: file.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom", "padding")}
    ends = list(dict.fromkeys(tokens[name] for name in ("eos", "eot", "eom") if tokens[name] is not None))
    return {
        "model_type": architecture.model_type,
        **architecture.fixed,
        **found,
        "tie_word_embeddings": "output.weight" not in file.tensors,  # llama.cpp: the embeddings are the head then
        "bos_token_id": tokens["bos"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokens["padding"],
    }


def _architecture(source: Source, file: GgufFile) -> _Architecture:
    kind = file.get("general.type", "model")
    if kind != "model":
        raise source.bad(f"is a GGUF file of a {kind}, not of a language model", _OTHER_FORMAT)
    if file.architecture not in ARCHITECTURES:
        raise source.bad(
            f"GGUF files of architecture {file.architecture!r} are not read, only of {', '.join(ARCHITECTURES)}",
            _OTHER_FORMAT,
        )
    return ARCHITECTURES[file.architecture]


def _refuse_what_is_not_honoured(
    source: Source, file: GgufFile, architecture: _Architecture, given: dict[str, Any]
) -> None:
    derived = _DERIVED | SCALING
    if not file.architecture.startswith("gemma"):
        derived = derived - {"attention.scale", "attention.sliding_window_pattern", "rope.freq_base_swa"}
    if file.architecture == "gpt2":
        derived = derived - SCALING
    for key, value in given.items():
        known = key in architecture.keys or key in derived or key in _CHANGES_NOTHING
        if not known and value not in _ONLY.get(key, ()):
            raise _refused(source, f"{file.architecture}.{key}", value)
    for name in file.fields:
        key = name.removeprefix("tokenizer.")
        known = key in _TOKENIZER_READ or key in _TOKENIZER_CHANGES_NOTHING or key.startswith("chat_template.")
        if name.startswith("tokenizer.") and not known and file.get(name) is not False:
            raise _refused(source, name, file.get(name))


def _gemma(name: str, given: dict[str, Any], head_dim: int) -> dict[str, Any]:
    if (scale := given.get("attention.scale")) is not None:
        scalar = round(scale**-2, 3)
    elif (name, given["block_count"]) in _GEMMAS_OF_HIDDEN_SIZE:
        scalar = given["embedding_length"] // given["attention.head_count"]
    else:
        scalar = head_dim
    found: dict[str, Any] = {"query_pre_attn_scalar": scalar}
    pattern = given.get("attention.sliding_window_pattern", {"gemma2": 2, "gemma3": 6}[name])
    blocks = range(given["block_count"])
    sliding = pattern if isinstance(pattern, list) else [(block + 1) % pattern != 0 for block in blocks]
    found["layer_types"] = ["sliding_attention" if sliding[block] else "full_attention" for block in blocks]
    return found


def _uniform(source: Source, key: str, value: Any) -> Any:
    """A value that may be given for each block; transformers has one for all."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise source.bad(f"{key} differs between blocks ({value})", _OTHER_FORMAT)
    return value[0]


def _refused(source: Source, key: str, value: Any) -> Exception:
    shown = str(value)[:60]
    return source.bad(f"its metadata {key} = {shown} changes the result and can't be honoured here", _OTHER_FORMAT)
