"""Task `patching.prepare`: everything that can be checked before a weight is loaded, checked.

It runs at every start of a study, in seconds, and names what later shards depend on outside the store: the model's
and the SAEs' fingerprints. A changed file changes a fingerprint, and so every spec that follows.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from tasks.context import ShardContext
from tasks.errors import BadInput
from tasks.models.describe import describe
from tasks.models.fingerprint import fingerprint
from tasks.models.load import load_tokenizer
from tasks.models.spec import ModelInfo
from tasks.patching.first_tokens import first_tokens
from tasks.patching.frame import encode
from tasks.patching.group_prompts import GroupPrompt, contrast_prompts
from tasks.patching.spec import PrepareParams
from tasks.sae.load import check_source
from tasks.sae.load import fingerprint as sae_fingerprint


def run(ctx: ShardContext) -> None:
    """Json `study`: what the flow needs to write every later spec, and what the report says was run."""
    p: PrepareParams = ctx.params
    info = describe(p.model)
    check_layers(p.saes.layers, info)
    tokenizer = load_tokenizer(p.model)
    prompts = {prompt.name: encode(tokenizer, prompt.text, p.scenario.frame) for prompt in p.scenario.prompts}
    groups = contrast_prompts(p.scenario.contrast, p.prompts_per_group, ctx.seed)
    check_lengths(p, tokenizer, info, prompts, groups)
    check_source(p.saes, info.d_model)
    choices = first_tokens(p.scenario, tokenizer)
    trained = p.saes.kind == "train"
    ctx.json(
        "study",
        {
            "model": p.model.model_dump(mode="json"),
            "model_fingerprint": fingerprint(p.model),
            "model_info": info.model_dump(mode="json"),
            "sae_fingerprints": {} if trained else {str(n): sae_fingerprint(p.saes, n) for n in p.saes.layers},
            "prompts": {
                prompt.name: {"text": prompt.text, "tokens": prompts[prompt.name]} for prompt in p.scenario.prompts
            },
            "choices": [{"name": name, "tokens": tokens} for name, tokens in choices.ids.items()],
            "dropped_first_tokens": [dropped._asdict() for dropped in choices.dropped],
            "contrast_prompts": len(groups),
        },
    )


def check_layers(layers: list[int], info: ModelInfo) -> None:
    wrong = [layer for layer in layers if not 0 <= layer < info.n_layers]
    if wrong:
        raise BadInput(
            "saes.layers", wrong, f"the model has blocks 0 to {info.n_layers - 1}", "name blocks of the model, from 0"
        )


def check_lengths(
    p: PrepareParams,
    tokenizer: PreTrainedTokenizerBase,
    info: ModelInfo,
    prompts: dict[str, list[int]],
    groups: list[GroupPrompt],
) -> None:
    """Every prompt that any stage reads must fit the model's context, those that are sampled with their answers."""
    for name, tokens in prompts.items():
        _check_length(f"scenario.prompts.{name}", tokens, tokenizer, info, room=p.max_new_tokens)
    for prompt in groups:
        tokens = encode(tokenizer, prompt.text, p.scenario.frame)
        _check_length(f"scenario.contrast, group {prompt.group}", tokens, tokenizer, info, room=0)


def _check_length(
    field: str, tokens: list[int], tokenizer: PreTrainedTokenizerBase, info: ModelInfo, room: int
) -> None:
    if not tokens:
        raise BadInput(field, "", "the model's tokenizer makes no token of this prompt", "write more, or a frame")
    if info.max_positions is None or len(tokens) + room <= info.max_positions:
        return
    remedy = "shorten the prompt"
    if len(tokens) < info.max_positions:
        remedy += f", or use trials.max_new_tokens of at most {info.max_positions - len(tokens)}"
    answer = f", its answer up to {room} more (trials.max_new_tokens)" if room else ""
    problem = f"it has {len(tokens)} tokens in its frame{answer}; the model reads {info.max_positions} in all"
    raise BadInput(field, tokenizer.decode(tokens), problem, remedy)
