"""Where the residual stream is in a decoder-only transformer.

"Layer L" is the residual stream after block L, counted from 0: the output of `blocks[L]`, equal to
`output_hidden_states[L + 1]` of transformers except after the last block, where transformers reports the stream
after the final norm.

Nothing here is a table of architectures: the blocks are the one list of modules as long as the configuration says,
and their neighbours are the embeddings and the final norm. `verify` then proves by one short forward pass that what
was found is the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.errors import BadInput

_HOW_TO_ADD = (
    "use a decoder-only language model of transformers whose blocks are one ModuleList of num_hidden_layers "
    "modules; for another shape extend tasks/models/layout.py and tests/models/tiny.py"
)


@dataclass(frozen=True, eq=False)
class Layout:
    """The parts of a decoder that the residual stream passes through."""

    stack: nn.Module
    """The decoder without its head: token ids in, last hidden state out."""
    blocks: nn.ModuleList
    embeddings: nn.Module
    """Token ids to vectors."""
    final_norm: nn.Module | None
    """Applied after the last block; None where there is none (OPT-350m)."""
    lm_head: nn.Module
    d_model: int
    """Width of the residual stream."""

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def devices(self) -> list[torch.device]:
        """Of each block: where its output is."""
        return [computes_on(block) for block in self.blocks]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Layout:
        """Find the parts by structure. Raises BadInput for a model that has another shape."""
        config = model.config.get_text_config(decoder=True)
        path = blocks_path(model)
        stack_path, _, _ = path.rpartition(".")
        stack = attrgetter(stack_path)(model) if stack_path else model
        lm_head = model.get_output_embeddings()
        if lm_head is None:
            raise _unknown(model, "has no output embeddings, so it is not a language model")
        return cls(
            stack=stack,
            blocks=attrgetter(path)(model),
            embeddings=model.get_input_embeddings(),
            final_norm=_final_norm(model, stack),
            lm_head=lm_head,
            d_model=config.hidden_size,
        )


def computes_on(module: nn.Module) -> torch.device:
    """Where a module computes: where its weights are, or where accelerate brings them and its inputs for a pass."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is None:
        return next(module.parameters()).device
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def block_output(output: Tensor | tuple) -> Tensor:
    """The residual stream [batch, position, d_model] in what a block returned: a tensor, or first in a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def replace_block_output(output: Tensor | tuple, hidden: Tensor) -> Tensor | tuple:
    """What the block would have returned with `hidden` as the residual stream."""
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


@contextmanager
def after_blocks(layout: Layout, layers: Iterable[int], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Inside, every forward pass calls `see(layer, x)` after each of these blocks, in forward order.

    x is the residual stream itself, [batch, position, d_model]: what `see` writes into it goes on through the model,
    and what `see` wants to keep it copies, unless it holds the whole stream until the end.
    """

    def hook(layer: int) -> Callable:
        return lambda module, args, output: see(layer, block_output(output))

    handles = [layout.blocks[layer].register_forward_hook(hook(layer)) for layer in dict.fromkeys(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def verify(model: PreTrainedModel, layout: Layout) -> None:
    """Check on three tokens that block outputs are the model's own `hidden_states`; raises BadInput if not."""
    captured: list[Tensor] = []
    with after_blocks(layout, range(layout.n_layers), lambda layer, x: captured.append(x)):
        ids = torch.arange(3, device=computes_on(layout.embeddings))[None]
        hidden_states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    if hidden_states is None or len(hidden_states) != layout.n_layers + 1 or len(captured) != layout.n_layers:
        raise _unknown(model, "does not report one hidden state per block")
    if not all(state.isfinite().all() for state in captured):
        raise BadInput(
            "model.dtype",
            str(captured[0].dtype).removeprefix("torch."),
            "the model's residual stream overflows to NaN or infinity on three tokens",
            "use dtype bfloat16 or float32",
        )
    for layer, (ours, theirs) in enumerate(zip(captured[:-1], hidden_states[1:-1], strict=True)):
        if not torch.equal(ours, theirs):
            raise _unknown(model, f"returns something else than the residual stream from block {layer}")
    if captured[-1].shape[-1] != layout.d_model:
        raise _unknown(model, f"has a residual stream of width {captured[-1].shape[-1]}, not {layout.d_model}")


def blocks_path(model: PreTrainedModel) -> str:
    """Path of the only outermost list of as many modules as there are layers in the text decoder; raises BadInput."""
    n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    decoder = model.get_decoder()
    prefix = next((name for name, module in model.named_modules() if module is decoder), "")
    prefix += "." if prefix else ""
    found: list[str] = []
    for name, module in decoder.named_modules():
        inside_another = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and not inside_another:
            found.append(name)
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        raise _unknown(model, f"should have one list of {n_layers} blocks; found: {listed}")
    return prefix + found[0]


def _final_norm(model: PreTrainedModel, stack: nn.Module) -> nn.Module | None:
    """The norm beside the blocks that is not a norm of the embeddings (BLOOM has one of those too)."""
    norms = [
        name for name, child in stack.named_children() if "norm" in type(child).__name__.lower() and "embed" not in name
    ]
    if len(norms) > 1:
        raise _unknown(model, f"has several norms beside its blocks: {', '.join(norms)}")
    return getattr(stack, norms[0]) if norms else None


def _unknown(model: nn.Module, problem: str) -> BadInput:
    architecture: Any = type(model).__name__
    return BadInput("model.source", architecture, f"the architecture {problem}", _HOW_TO_ADD)
