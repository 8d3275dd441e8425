"""Which tensors of a forward pass are watched: what enters attention and FFN of every block, and what leaves a block.

Nothing here is a table of architectures. One short pass shows which child of a block is attention, which one is the
first layer of the FFN, what tensor each receives, and whether that very tensor is what a norm of the block returned.
A norm whose output goes elsewhere (Gemma 2's and OLMo 2's post-norms, norms of queries and keys) is no point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.errors import BadInput
from tasks.models.layout import Layout, block_output, computes_on, replace_block_output

Kind = Literal["attn", "mlp", "both", "resid"]

_MIXERS = ("attn", "attention", "mixer", "mamba", "ssm", "deltanet", "temporal", "conv")
"""In a child's class or name: it carries information between positions, as attention does."""
_FFNS = ("mlp", "moe")
"""In a child's class: it is an FFN whatever its name is (Nemotron-H calls every part `mixer`)."""
_NORM = "norm"


@dataclass(frozen=True)
class Entry:
    """Where a tensor goes in: a module, and which argument of its call."""

    module: nn.Module
    argument: int | str


@dataclass(frozen=True, eq=False)
class Point:
    """One watched tensor, [batch, position, d]."""

    name: str
    layer: int
    kind: Kind
    module: nn.Module
    of: Literal["input", "output"]
    argument: int | str = 0
    """Of an input: position or keyword in the module's call."""
    also: Entry | None = None
    """The other module that receives the same tensor: attention and FFN side by side (GPT-J, Phi, Falcon)."""
    shaped_like: nn.Module | None = None
    """The block, where the tensor itself is [batch * position, d] (OPT)."""


def residual_points(layout: Layout) -> list[Point]:
    """`layer_{i}_resid_post`: what each block returns."""
    return [
        Point(f"layer_{layer}_resid_post", layer, "resid", block, "output") for layer, block in enumerate(layout.blocks)
    ]


@torch.no_grad()
def norm_points(model: PreTrainedModel, layout: Layout) -> list[Point]:
    """What enters attention and what enters the first FFN layer of every block, attention first; runs three tokens.

    Names: `layer_{i}_ln_attn`, `layer_{i}_ln_mlp` where a norm's output goes there, `layer_{i}_attn_input`,
    `layer_{i}_mlp_input` where the tensor comes from elsewhere (OLMo 2), `layer_{i}_ln`, `layer_{i}_input` where one
    tensor feeds both. A block may lack one of the two (Nemotron-H). Raises BadInput for a block of another shape.
    """
    traces = [_Trace(type(model).__name__) for _ in layout.blocks]
    with ExitStack() as hooks:
        for block, trace in zip(layout.blocks, traces, strict=True):
            for name, child in block.named_children():
                hooks.callback(child.register_forward_pre_hook(trace.called(name), with_kwargs=True).remove)
                hooks.callback(child.register_forward_hook(trace.returned).remove)
        ids = torch.arange(3, device=computes_on(layout.embeddings))[None]
        layout.stack(input_ids=ids, use_cache=False)
    points = [point for layer, trace in enumerate(traces) for point in _points(model, layout, layer, trace)]
    modules = [m for p in points for m in (p.module, *([p.also.module] if p.also else []))]
    if len(set(modules)) < len(modules):
        raise _unknown(model, "uses one module in several blocks")
    return points


@contextmanager
def watching(points: Sequence[Point], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Inside, every forward pass calls `see(i, x)` for the i-th point, in forward order; x is [batch, position, d].

    x is the model's own tensor: `see` must neither change nor keep it.
    """
    with ExitStack() as hooks:
        for i, point in enumerate(points):
            shape = _following_shape(point, hooks)

            def look(x: Tensor, i: int = i, shape: Callable = shape) -> None:
                see(i, shape(x))

            hooks.callback(_hook(point, point.module, point.argument, look).remove)
        yield


@contextmanager
def rewriting(points: Sequence[Point], rewrite: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Inside, every forward pass goes on with `rewrite(i, x)` in the place of x at the i-th point.

    x and what `rewrite` returns are [batch, position, d]; x itself must stay as it is, since the model may use it
    elsewhere. Of a point that feeds attention and FFN `rewrite` is asked twice, and has to answer the same.
    """
    with ExitStack() as hooks:
        for i, point in enumerate(points):
            shape = _following_shape(point, hooks)

            def replace(x: Tensor, i: int = i, shape: Callable = shape) -> Tensor:
                return rewrite(i, shape(x)).view(x.shape)

            hooks.callback(_hook(point, point.module, point.argument, replace).remove)
            if point.also is not None:
                hooks.callback(_hook(point, point.also.module, point.also.argument, replace).remove)
        yield


def _hook(point: Point, module: nn.Module, argument: int | str, act: Callable[[Tensor], Tensor | None]) -> Any:
    """Calls `act` with the point's tensor as it goes by, and puts in its place what `act` returns, if anything."""
    if point.of == "output":

        def after(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
            new = act(block_output(output))
            return None if new is None else replace_block_output(output, new)

        return module.register_forward_hook(after)

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        x = args[argument] if isinstance(argument, int) else kwargs[argument]
        new = act(x)
        if new is None:
            return None
        # the same tensor may be given as query, key and value
        return tuple(new if a is x else a for a in args), {k: new if a is x else a for k, a in kwargs.items()}

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _following_shape(point: Point, hooks: ExitStack) -> Callable[[Tensor], Tensor]:
    """Gives a point's tensor its shape [batch, position, d]: a view, and nothing where it has that shape."""
    if point.shaped_like is None:
        return lambda x: x
    shape: list[int] = []

    def remember(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        shape[:] = _first_tensor(args, kwargs)[1].shape[:2]

    hooks.callback(point.shaped_like.register_forward_pre_hook(remember, with_kwargs=True).remove)
    return lambda x: x.view(*shape, x.shape[-1])


@dataclass
class _Call:
    part: str
    module: nn.Module
    argument: int | str
    x: Tensor


@dataclass
class _Trace:
    """What the children of one block received and returned, in order. Tensors are kept: only so are they distinct."""

    architecture: str
    calls: list[_Call] = field(default_factory=list)
    norm_outputs: list[Tensor] = field(default_factory=list)

    def called(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            part, found = _part(self.architecture, name, module), _first_tensor(args, kwargs)
            if part is not None and part != "norm" and found is not None:
                self.calls.append(_Call(part, module, *found))

        return hook

    def returned(self, module: nn.Module, args: tuple, output: Any) -> None:
        if _NORM in _kind(self.architecture, module) and isinstance(output, Tensor):
            self.norm_outputs.append(output)

    def is_normed(self, call: _Call) -> bool:
        return any(_same(call.x, output) for output in self.norm_outputs)


def _points(model: PreTrainedModel, layout: Layout, layer: int, trace: _Trace) -> list[Point]:
    """The points of one block."""
    calls = trace.calls
    at = next((i for i, call in enumerate(calls) if call.part == "attn"), None)
    attn = None if at is None else calls[at]
    allowed = ("mlp",) if attn is None else ("mlp", "other")
    mlp = next((call for call in calls[0 if at is None else at + 1 :] if call.part in allowed), None)
    if any(call.part == "unclear" for call in calls) or (attn is None and mlp is None):
        children = ", ".join(f"{name}: {type(c).__name__}" for name, c in layout.blocks[layer].named_children())
        raise _unknown(model, f"has neither a clear attention nor a clear FFN in block {layer} ({children})")

    def point(kind: Kind, call: _Call, name: str, also: Entry | None = None) -> Point:
        if call.x.ndim not in (2, 3) or call.x.shape[-1] != layout.d_model:
            raise _unknown(model, f"gives a tensor of shape {list(call.x.shape)} to {kind} of block {layer}")
        block = layout.blocks[layer] if call.x.ndim == 2 else None
        return Point(f"layer_{layer}_{name}", layer, kind, call.module, "input", call.argument, also, block)

    if attn is not None and mlp is not None and _same(attn.x, mlp.x):
        also = Entry(mlp.module, mlp.argument)
        return [point("both", attn, "ln" if trace.is_normed(attn) else "input", also)]
    found = []
    if attn is not None:
        found.append(point("attn", attn, "ln_attn" if trace.is_normed(attn) else "attn_input"))
    if mlp is not None:
        found.append(point("mlp", mlp, "ln_mlp" if trace.is_normed(mlp) else "mlp_input"))
    return found


def _part(architecture: str, name: str, child: nn.Module) -> Literal["norm", "attn", "mlp", "other", "unclear"] | None:
    """What a child of a block is; None for what holds no weights, such as dropout."""
    kind = _kind(architecture, child)
    mixes = any(word in kind for word in _MIXERS)
    if _NORM in kind:
        return "unclear" if mixes else "norm"  # DBRX: norm, attention and norm in one
    if not any(True for tensors in (child.parameters(), child.buffers()) for _ in tensors):
        return None
    if mixes:
        return "attn"
    if any(word in kind for word in _FFNS):
        return "mlp"
    return "attn" if any(word in name.lower() for word in _MIXERS) else "other"


def _kind(architecture: str, module: nn.Module) -> str:
    """A module's class in lower case, without the model's name: "Qwen2MoeAttention" is no mixture of experts."""
    name = type(module).__name__
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(architecture, name, strict=False)))
    return name[shared if shared > 3 else 0 :].lower()


def _first_tensor(args: tuple, kwargs: dict[str, Any]) -> tuple[int | str, Tensor] | None:
    """The hidden state in a call, and where it is: `hidden_states` if there is one, else the first of real numbers."""
    named = kwargs.get("hidden_states")
    if isinstance(named, Tensor):
        return "hidden_states", named
    for place, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, Tensor) and value.is_floating_point():
            return place, value
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, or one is a reshaped view of the other."""
    if a is b:
        return True
    return (
        a.device == b.device and a.data_ptr() == b.data_ptr() and (a.numel(), a.shape[-1]) == (b.numel(), b.shape[-1])
    )


def _unknown(model: nn.Module, problem: str) -> BadInput:
    return BadInput(
        "model.source",
        type(model).__name__,
        f"the architecture {problem}",
        "use a model of transformers whose blocks call attention and FFN as modules of their own; for another shape "
        "extend tasks/models/points.py and tests/models/tiny.py",
    )
