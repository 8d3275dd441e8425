"""Which device holds which part of a model: one holds all of it, or several GPUs a run of blocks each.

A model that fits one GPU stays on it. One that doesn't is split over all that this process sees, in equal parts, and
accelerate's hooks carry the residual stream from one to the next. With offloading, what fits no GPU is in main memory,
what fits neither is on disk, and the hooks bring it to where it computes, module by module, in every pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tasks.models.layout import blocks_path
from tasks.models.memory import free_bytes
from tasks.models.sources import Source

Placement = Mapping[str, int | str | torch.device]
"""Module name -> device, as accelerate's `device_map`; the name "" is the whole model."""

SHARE = 0.8
"""Of the free memory for weights: the rest is for keys and values, captures and SAEs."""

_GIB = 2**30


def placement(
    source: Source,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: str | torch.device,
    *,
    offload: bool = False,
    stored: int | None = None,
) -> Placement:
    """Where a model goes that was asked for on `device`.

    "cuda" may be several GPUs; "cuda:N" is that one. offload: what does not fit there goes to main memory and to disk.
    stored: bytes that the weights take where that is less than `dtype` makes of them, as with quantized ones.
    Raises BadInput when the weights fit neither one nor all, and are not to be offloaded.
    """
    device = torch.device(device)
    gpus = [] if device.type != "cuda" else range(torch.cuda.device_count()) if device.index is None else [device.index]
    if not offload and len(gpus) < 2:
        return {"": device}
    free = {i: free_bytes(torch.device("cuda", i)) for i in gpus}
    return place(source, config, dtype, free, free_bytes("cpu") if offload else None, stored)


def place(
    source: Source,
    config: PretrainedConfig,
    dtype: torch.dtype,
    free: Mapping[int, int],
    memory: int | None = None,
    stored: int | None = None,
) -> Placement:
    """Where a model goes: GPU -> bytes free there, and the bytes of free main memory if it may be offloaded.

    Raises BadInput when it does not fit. `stored` as in `placement`.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    size = sum(p.nbytes for p in model.parameters())
    shrink = 1.0 if stored is None else min(1.0, stored / size)
    room = {i: int(SHARE * bytes_ / shrink) for i, bytes_ in free.items()}
    for gpu in list(room)[:1]:
        if size <= room[gpu]:
            return {"": torch.device("cuda", gpu)}
    found = _in_equal_parts(model, size, room) if len(room) > 1 else None
    if found is not None:
        return found
    if memory is not None:
        return _offloaded(model, size, room, int(SHARE * memory / shrink))
    raise source.bad(
        f"its weights take {size * shrink / _GIB:.1f} GiB in {str(dtype).removeprefix('torch.')}, and the {len(free)} "
        f"GPUs have {sum(room.values()) * shrink / _GIB:.1f} GiB for weights "
        f"({', '.join(f'{r * shrink / _GIB:.1f}' for r in room.values())})",
        "give the process more GPUs, free these, or use a smaller model or precision",
    )


def spread(model: PreTrainedModel, where: Placement) -> str:
    """How a model is spread, for people: "3.1 GiB on 2 GPUs, 10.2 GiB in memory, 40.0 GiB on disk"."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    sizes: Counter[str] = Counter()
    gpus = set()
    for name, parameter in model.named_parameters():
        if name in tied:
            continue
        part = name
        while part and part not in where:
            part = part.rpartition(".")[0]
        device = str(where[part])
        kind = {"disk": "disk", "cpu": "memory"}.get(device, "gpu")
        sizes[kind] += parameter.nbytes
        if kind == "gpu":
            gpus.add(device)
    named = {"gpu": "on 1 GPU" if len(gpus) == 1 else f"on {len(gpus)} GPUs", "memory": "in memory", "disk": "on disk"}
    return ", ".join(f"{_readable(sizes[kind])} {words}" for kind, words in named.items() if sizes[kind])


def is_split(where: Placement) -> bool:
    """Whether a placement has more than one part."""
    return len(where) > 1


def _readable(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"


def _in_equal_parts(model: PreTrainedModel, size: int, room: Mapping[int, int]) -> Placement | None:
    """The split whose largest part is smallest, up to a few percent; None when there is none within `room`.

    Blocks are kept whole, so an equal share may be a little too small: it grows until everything has a place.
    """
    share = size / len(room)
    while True:
        found = _filled(model, {i: min(int(share), most) for i, most in room.items()})
        if all(isinstance(device, int) for device in found.values()):
            return found
        if share > max(room.values()):
            return None
        share *= 1.05


def _offloaded(model: PreTrainedModel, size: int, room: Mapping[int, int], memory: int) -> Placement:
    """GPUs first, then `memory` bytes of main memory, then disk; every block is named, so that it has a hook.

    Where parts come and go, accelerate leaves room for the largest of them.
    """
    if not room and size <= memory:
        return {"": torch.device("cpu")}
    blocks = blocks_path(model)
    found = _filled(model, {**room, "cpu": memory})
    return {part: device for name, device in found.items() for part in _down_to(model, name, blocks)}


def _down_to(model: nn.Module, name: str, blocks: str) -> list[str]:
    """The part `name`, or where it holds the blocks, those and their neighbours."""
    if f"{blocks}.".startswith(f"{name}.") or not name:
        part = model.get_submodule(name)
        below = [*(n for n, _ in part.named_parameters(recurse=False)), *(n for n, _ in part.named_children())]
        return [leaf for n in below for leaf in _down_to(model, f"{name}.{n}" if name else n, blocks)]
    return [name]


def _filled(model: PreTrainedModel, limits: Mapping[int | str, int]) -> dict[str, int | str]:
    """Devices filled one after the other, each up to its limit; what is left over is on "cpu" or "disk"."""
    from accelerate import infer_auto_device_map  # a machine with one GPU does without accelerate

    whole = list(model._no_split_modules or ())
    return dict(infer_auto_device_map(model, dict(limits), no_split_module_classes=whole))
