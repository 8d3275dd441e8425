"""Task `patching.activations`: residual streams of contrast prompts at their last token."""

from __future__ import annotations

from tasks.context import ShardContext
from tasks.models.batching import residuals_at_last_token
from tasks.models.load import load
from tasks.patching.group_prompts import contrast_prompts
from tasks.patching.spec import ActivationsParams
from tasks.patching.tables import PROMPTS
from tasks.text.prompts import encode

PROMPTS_PER_CHUNK = 64
DEFAULT_BATCH_SIZE = 16


def run(ctx: ShardContext) -> None:
    """Tensors `residuals`: residual [n, len(layers), d_model] float32. Table `prompts`: one row per prompt."""
    p: ActivationsParams = ctx.params
    prompts = contrast_prompts(p.contrast, p.prompts_per_group, ctx.seed)[p.start : p.stop]
    loaded = load(p.model, ctx.runtime.device, p.model_fingerprint)
    batch_size = ctx.runtime.batch_size or DEFAULT_BATCH_SIZE
    for chunk in ctx.chunks(-(-len(prompts) // PROMPTS_PER_CHUNK)):
        first = chunk.index * PROMPTS_PER_CHUNK
        block = prompts[first : first + PROMPTS_PER_CHUNK]
        tokens = [tuple(encode(loaded.tokenizer, prompt.text, p.frame)) for prompt in block]
        residual = residuals_at_last_token(loaded, tokens, p.layers, batch_size)
        chunk.tensors("residuals", {"residual": residual})
        ids = range(p.start + first, p.start + first + len(block))
        columns = {
            "prompt_id": ids,
            "group": [prompt.group for prompt in block],
            "text": [prompt.text for prompt in block],
            "n_tokens": [len(t) for t in tokens],
        }
        chunk.table(PROMPTS.name, PROMPTS.from_columns(columns))
        chunk.count(prompts=len(block))
        chunk.commit()
        ctx.progress(first + len(block), len(prompts), unit="prompts")
