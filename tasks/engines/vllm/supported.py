"""Which architectures the vLLM engine edits. Light: no vLLM."""

from __future__ import annotations

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
)
"""Their decoder layers return (hidden, residual), and hidden + residual is the stream after the block."""
