"""GGUF files of tiny models, laid out as llama.cpp's converter lays them out.

Written from llama.cpp's conventions, so that reading them back is checked against something else than the reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from tokenizers import Tokenizer
from transformers import PreTrainedModel

_ARCHITECTURES = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3"}
_SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": ("norm_epsilon", "layer_norm_eps", "layer_norm_epsilon"),
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "use_parallel_residual": "use_parallel_residual",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
_OWN_KEYS = {  # what only some converters write
    "attention.sliding_window": {"gemma2", "gemma3", "phi3"},
    "attention.key_length": {"qwen3", "qwen3moe", "gemma2", "gemma3"},
    "attention.value_length": {"qwen3", "qwen3moe", "gemma2", "gemma3"},
    "attn_logit_softcapping": {"gemma2"},
    "final_logit_softcapping": {"gemma2", "gemma3"},
    "expert_shared_feed_forward_length": {"qwen2moe"},
}


def write(
    path: Path,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    quantized: gguf.GGMLQuantizationType | None = None,
) -> Path:
    """keys: metadata to add or replace, under their full names; None leaves a key out. tensors: likewise by name."""
    arch = _ARCHITECTURES.get(model.config.model_type, model.config.model_type)
    metadata = _metadata(arch, model) | _vocabulary(tokenizer) | dict(keys or {})
    data = _tensors(arch, model) | dict(tensors or {})
    writer = GGUFWriter(str(path), metadata.pop("general.architecture", arch))
    _write(writer, {k: v for k, v in metadata.items() if v is not None}, data, quantized)
    return path


def rewrite(source: Path, path: Path, keep: Callable[[str], bool], keys: Mapping[str, Any] | None = None) -> Path:
    """A copy with the tensors that `keep` names, and more metadata."""
    reader = GGUFReader(source)
    metadata = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")} | dict(keys or {})
    writer = GGUFWriter(str(path), metadata.pop("general.architecture"))
    _write(writer, metadata, {t.name: np.array(t.data) for t in reader.tensors if keep(t.name)}, None)
    return path


def split(source: Path, stem: Path, parts: int) -> list[Path]:
    """As `llama-gguf-split` does: tensors in order, all metadata in the first part."""
    names = [tensor.name for tensor in GGUFReader(source).tensors]
    paths = []
    for n in range(parts):
        mine = set(names[n * len(names) // parts : (n + 1) * len(names) // parts])
        keys = {"split.no": n, "split.count": parts, "split.tensors.count": len(names)}
        path = stem.with_name(f"{stem.name}-{n + 1:05d}-of-{parts:05d}.gguf")
        paths.append(rewrite(source, path, mine.__contains__, keys))
    return paths


def _write(writer: GGUFWriter, metadata: Mapping[str, Any], tensors: Mapping[str, Any], quantized: Any) -> None:
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            kinds = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
            writer.add_key_value(key, value, kinds.get(type(value), GGUFValueType.STRING))
    for name, array in tensors.items():
        array = np.asarray(array, dtype=np.float32)
        if quantized is not None and array.ndim > 1:
            writer.add_tensor(name, gguf.quants.quantize(array, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _metadata(arch: str, model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    found: dict[str, Any] = {"general.type": "model"}
    for key, names in _SIZES.items():
        name = next((n for n in ([names] if isinstance(names, str) else names) if getattr(config, n, None)), None)
        value = getattr(config, name) if name else None
        if arch not in _OWN_KEYS.get(key, {arch}) or value is None:
            continue
        if key.startswith("expert") and "moe" not in arch:
            continue
        found[f"{arch}.{key}"] = value
    if arch == "gpt2":
        found[f"{arch}.feed_forward_length"] = config.n_inner or 4 * config.n_embd
        found.pop(f"{arch}.attention.head_count_kv", None)
        return found
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found[f"{arch}.rope.freq_base"] = float(rope["rope_theta"])
    found[f"{arch}.rope.dimension_count"] = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    return found


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    described = json.loads(tokenizer.to_str())
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    special = {token["content"] for token in described["added_tokens"]}
    kinds = [int(gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL) for t in tokens]
    found = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in described["model"]["merges"]],
    }
    ids = {"bos": "<s>", "eos": "</s>", "padding": "<pad>"}
    return found | {f"tokenizer.ggml.{name}_token_id": vocab[t] for name, t in ids.items() if t in vocab}


def _tensors(arch: str, model: PreTrainedModel) -> dict[str, np.ndarray]:
    config = model.config
    names = gguf.get_tensor_name_map(
        next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), config.num_hidden_layers
    )
    found = {}
    for name, weight in model.state_dict().items():
        array = weight.float().numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if fused := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)", name):
            block, which = fused.groups()
            gate, up = np.split(array, 2, axis=1)
            parts = {"down": array} if which == "down_proj" else {"gate": gate, "up": up}
            found |= {f"blk.{block}.ffn_{part}_exps.weight": data for part, data in parts.items()}
            continue
        stem, _, leaf = name.rpartition(".")
        stored = names.get_name(stem)
        assert stored is not None, name
        if arch == "llama" and stored.endswith(("attn_q", "attn_k")):
            heads = config.num_attention_heads if stored.endswith("q") else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        if arch.startswith("gemma") and stored.endswith("norm"):
            array = array + 1
        if arch == "gpt2" and leaf == "weight" and stored.endswith(("attn_qkv", "attn_output", "ffn_up", "ffn_down")):
            array = array.T
        if stored.endswith("ffn_gate_inp_shexp"):
            array = array.reshape(-1)
        found[f"{stored}.{leaf}"] = array
    return found
