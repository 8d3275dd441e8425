"""Which device holds which part of a model: one holds all of it, or several GPUs a run of blocks each.

A model that fits one GPU stays on it. One that doesn't is split over all that this process sees, in equal parts, and
accelerate's hooks carry the residual stream from one to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tasks.models.memory import free_bytes
from tasks.models.sources import Source

Placement = Mapping[str, int | str | torch.device]
"""Module name -> device, as accelerate's `device_map`; the name "" is the whole model."""

SHARE = 0.8
"""Of a GPU's free memory for weights: the rest is for keys and values, captures and SAEs."""


def placement(source: Source, config: PretrainedConfig, dtype: torch.dtype, device: str | torch.device) -> Placement:
    """Where a model goes that was asked for on `device`.

    "cuda" may be several GPUs; "cuda:N" is that one. Raises BadInput when the weights fit neither one nor all.
    """
    device = torch.device(device)
    if device.type != "cuda" or device.index is not None or torch.cuda.device_count() < 2:
        return {"": device}
    return place(source, config, dtype, [free_bytes(f"cuda:{i}") for i in range(torch.cuda.device_count())])


def place(source: Source, config: PretrainedConfig, dtype: torch.dtype, free: Sequence[int]) -> Placement:
    """Where a model goes on GPUs 0, 1, ... with so many bytes free. Raises BadInput when it does not fit."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    size = sum(p.nbytes for p in model.parameters())
    room = [int(SHARE * bytes_) for bytes_ in free]
    if size <= room[0]:
        return {"": torch.device("cuda", 0)}
    found = _in_equal_parts(model, size, room)
    if found is None:
        gib = 2**30
        raise source.bad(
            f"its weights take {size / gib:.1f} GiB in {str(dtype).removeprefix('torch.')}, and the {len(free)} GPUs "
            f"have {sum(room) / gib:.1f} GiB for weights ({', '.join(f'{r / gib:.1f}' for r in room)})",
            "give the process more GPUs, free these, or use a smaller model or precision",
        )
    return found


def is_split(where: Placement) -> bool:
    """Whether a placement has more than one part."""
    return len(where) > 1


def _in_equal_parts(model: PreTrainedModel, size: int, room: Sequence[int]) -> Placement | None:
    """The split whose largest part is smallest, up to a few percent; None when there is none within `room`.

    Blocks are kept whole, so an equal share may be a little too small: it grows until everything has a place.
    """
    from accelerate import infer_auto_device_map  # a machine with one GPU does without accelerate

    share = size / len(room)
    while True:
        limits = {i: min(int(share), most) for i, most in enumerate(room)}
        found = infer_auto_device_map(model, limits, no_split_module_classes=list(model._no_split_modules or ()))
        if all(isinstance(device, int) for device in found.values()):
            return dict(found)
        if share > max(room):
            return None
        share *= 1.05
