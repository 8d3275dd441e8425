"""Task `patching.prepare`: everything that can be checked before a weight is loaded, checked.

What depends on the model's files depends on the input `identity` (`patching.identify`).
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from tasks.context import ShardContext
from tasks.errors import BadInput
from tasks.models.load import load_tokenizer
from tasks.models.spec import ModelInfo
from tasks.patching.first_tokens import first_tokens
from tasks.patching.group_prompts import GroupPrompt, contrast_prompts
from tasks.patching.spec import PrepareParams
from tasks.sae.load import check_source
from tasks.text.prompts import encode


def run(ctx: ShardContext) -> None:
    """Json `study`: what the flow needs to write every later spec, and what the report says was run."""
    p: PrepareParams = ctx.params
    identity = ctx.input("identity").json("identity")
    info = ModelInfo.model_validate(identity["model_info"])
    tokenizer = load_tokenizer(p.model)
    prompts = {prompt.name: encode(tokenizer, prompt.text, p.scenario.frame) for prompt in p.scenario.prompts}
    groups = contrast_prompts(p.scenario.contrast, p.prompts_per_group, ctx.seed)
    check_lengths(p, tokenizer, info, prompts, groups)
    check_source(p.saes, info.d_model)
    choices = first_tokens(p.scenario, tokenizer)
    ctx.json(
        "study",
        identity
        | {
            "model": p.model.model_dump(mode="json"),
            "prompts": {
                prompt.name: {"text": prompt.text, "tokens": prompts[prompt.name]} for prompt in p.scenario.prompts
            },
            "choices": [{"name": name, "tokens": tokens} for name, tokens in choices.ids.items()],
            "dropped_first_tokens": [dropped._asdict() for dropped in choices.dropped],
            "contrast_prompts": len(groups),
        },
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
