"""Mixtures of experts: where the experts are, what the router chose for every token, and how much of a model is active.

transformers calls all routed experts of a block as one module, `experts(hidden_states, top_k_index, top_k_weights)`:
its signature is what they are known by. Experts that every token goes through ("shared") are beside it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from tasks.errors import BadInput
from tasks.models.batching import truncated
from tasks.models.layout import Layout, computes_on

_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_top_k", "top_k")
"""Names of the number of experts that a token is sent to, in configurations."""
_CLOSE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, eq=False)
class MoeBlock:
    layer: int
    experts: nn.Module
    """All routed experts: hidden states [tokens, d], chosen experts and weights [tokens, k] to [tokens, d]."""
    shared: nn.Module | None
    n_experts: int
    """Routed ones."""
    shared_gate: nn.Module | None = None
    """Its sigmoid scales what the shared ones write (Qwen)."""


@dataclass(frozen=True, eq=False)
class Routing:
    """What one block did with the tokens of a pass; tokens = batch * position, in row-major order."""

    layer: int
    experts: Tensor
    """[tokens, k] int64"""
    weights: Tensor
    """[tokens, k], as applied"""
    routed_output: Tensor
    """[tokens, d]: the weighted sum of what the chosen experts write"""
    shared_output: Tensor | None
    """[tokens, d]: what the shared experts add, gated where they are"""


def moe_blocks(layout: Layout) -> list[MoeBlock]:
    """The blocks with routed experts, in order; none for a dense model.

    Runs three tokens through the blocks up to the first of them, and raises BadInput when routed and shared outputs
    do not add up to what that block's mixture returns.
    """
    found = [found for layer in range(layout.n_layers) if (found := _moe_block(layout, layer)) is not None]
    if found:
        _verify(layout, found[0])
    return found


@contextmanager
def routing(blocks: Sequence[MoeBlock], see: Callable[[Routing], None]) -> Iterator[None]:
    """Inside, every forward pass calls `see` once for each of `blocks`, in order.

    The tensors are the model's own: `see` must neither change nor keep them.
    """
    with ExitStack() as hooks:
        for block in blocks:
            _watch(block, see, hooks)
        yield


def parameter_counts(config: PretrainedConfig) -> tuple[int, int]:
    """(all parameters, those active for one token) of the model that `config` describes; tied ones count once.

    Of n routed experts a token uses k. Everything else is active, embeddings included.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total = sum(p.numel() for p in model.parameters())
    idle = sum(
        sum(p.numel() for p in module.parameters()) * (1 - _per_token(config, parent) / _n_experts(module))
        for parent in model.modules()
        for module in parent.children()
        if _routes(module)
    )
    return total, total - round(idle)


def _moe_block(layout: Layout, layer: int) -> MoeBlock | None:
    for parent in layout.blocks[layer].modules():
        for child in parent.children():
            if _routes(child):
                shared, gate = _shared(parent)
                return MoeBlock(layer, child, shared, _n_experts(child), gate)
    return None


def _routes(module: nn.Module) -> bool:
    """Whether a module is called with hidden states, the router's choice, and its weights."""
    if "experts" not in type(module).__name__.lower():
        return False
    names = list(inspect.signature(module.forward).parameters)
    return len(names) >= 3 and "weights" in names[2] and ("index" in names[1] or "indices" in names[1])


def _n_experts(experts: nn.Module) -> int:
    """Experts with weights of their own, in whatever shape they are kept."""
    largest = max(experts.parameters(), key=lambda p: p.ndim, default=None)
    stacked = largest is not None and largest.ndim >= 3
    return largest.shape[0] if stacked else experts.num_experts


def _shared(parent: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The shared experts beside the routed ones, and their gate."""
    shared = gate = None
    for name, child in parent.named_children():
        if "shared" in name:
            if "gate" in name:
                gate = child
            else:
                shared = child
    return shared, gate


def _per_token(config: PretrainedConfig, parent: nn.Module) -> int:
    text = config.get_text_config(decoder=True)
    for holder in (text, *parent.modules()):
        for name in _PER_TOKEN:
            value = getattr(holder, name, None)
            if isinstance(value, list | tuple):  # one for each layer
                value = max(value)
            if isinstance(value, int) and value > 0:
                return value
    raise BadInput(
        "model.source",
        config.model_type,
        "the configuration does not say how many experts a token is sent to",
        "extend tasks/models/experts.py",
    )


def _watch(block: MoeBlock, see: Callable[[Routing], None], hooks: ExitStack) -> None:
    """The shared experts may run before the routed ones or after them: the last of the block's parts reports."""
    parts: dict[str, Any] = {}
    wanted = {"routed": block.experts, "shared": block.shared, "gate": block.shared_gate}
    wanted = {name: module for name, module in wanted.items() if module is not None}

    def report() -> None:
        routed, shared, gate = (parts.get(name) for name in ("routed", "shared", "gate"))
        parts.clear()
        if gate is not None:
            shared = torch.sigmoid(gate.flatten(0, -2)) * shared.flatten(0, -2)
        see(Routing(block.layer, *routed, None if shared is None else shared.flatten(0, -2)))

    def hook(name: str) -> Callable:
        def after(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
            if name == "routed":
                _, experts, weights = (*args, *kwargs.values())[:3]
                parts[name] = (experts.flatten(0, -2).long(), weights.flatten(0, -2), output.flatten(0, -2))
            else:
                parts[name] = output
            if len(parts) == len(wanted):
                report()

        return after

    for name, module in wanted.items():
        hooks.callback(module.register_forward_hook(hook(name), with_kwargs=True).remove)


@torch.no_grad()
def _verify(layout: Layout, block: MoeBlock) -> None:
    parent = next(m for m in layout.blocks[block.layer].modules() if block.experts in m.children())
    seen: list[Any] = []
    after = parent.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        ids = torch.arange(3, device=computes_on(layout.embeddings))[None]
        with truncated(layout, block.layer + 1), routing([block], seen.append):
            layout.stack(input_ids=ids, use_cache=False)
    finally:
        after.remove()
    parts, output = seen
    output = output if isinstance(output, Tensor) else output[0]
    total = parts.routed_output if parts.shared_output is None else parts.routed_output + parts.shared_output
    error = (total.float() - output.flatten(0, -2).float()).norm() / output.float().norm()
    if not error <= _CLOSE.get(output.dtype, 5e-2):
        raise BadInput(
            "model.source",
            type(parent).__name__,
            f"routed and shared experts of block {block.layer} do not add up to what it returns",
            "extend tasks/models/experts.py and tests/models/tiny.py",
        )
