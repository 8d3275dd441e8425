"""Files of a dictionary, read and checked: whatever is in one is a value of its format, or BadInput says what is not.

Types, shapes and values are the file's, so they are looked at before anything is computed with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tasks.errors import BadInput
from tasks.sae.locate import FIELD

_REFUSED_CLASS = re.compile(r"GLOBAL (\S+)")
_NAMES_SHOWN = 20


def read_json(path: Path) -> dict[str, Any]:
    """Raises BadInput for a file that is not a JSON object."""
    with _readable(path, "JSON"):
        content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise BadInput(FIELD, str(path), "is not a JSON object", "check saes.kind")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, in the file's precision. Raises BadInput for a broken file."""
    with _readable(path, "a safetensors file"):
        return load_file(path)


def read_npz(path: Path) -> dict[str, Tensor]:
    """Arrays of real numbers by name, as tensors. Nothing pickled is read."""
    with _readable(path, "an npz file"):
        with np.load(path, allow_pickle=False) as data:
            arrays = {key: data[key] for key in data}
        return {key: torch.from_numpy(_native(array)) for key, array in arrays.items()}


def read_pickle(path: Path) -> dict[str, Any]:
    """A state dict by `torch.load`, which builds tensors and plain values and runs nothing of the file.

    Raises BadInput for a damaged file and for one that holds objects of other classes. torch's own message is kept
    back: it advises to switch that protection off.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # of any kind: these bytes may be anything
        found = _REFUSED_CLASS.search(str(error))
        reason = f"it asks for {found[1]}" if found else "damaged, or nothing of that kind"
        problem = f"is not a state dict of tensors ({reason})"
        remedy = "save the dictionary's state_dict() with torch.save, or download it again"
        raise BadInput(FIELD, str(path), problem, remedy) from error
    if not isinstance(state, Mapping):
        problem = f"holds one {type(state).__name__}, not tensors by name"
        raise BadInput(FIELD, str(path), problem, "save the dictionary's state_dict() with torch.save")
    return dict(state)


def take(
    tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: Path, unused: Collection[str] = ()
) -> list[Tensor]:
    """The tensors of these names and shapes, as float32. A vector may be stored as a matrix of one row or column.

    unused: names of others that decide nothing.
    Raises BadInput for a tensor that is missing, of another type or shape, not finite or too large for float32, and
    for one that the file has and nothing reads, since it may change what the others mean.
    """
    names = sorted(map(str, tensors))
    for name in shapes:
        if name not in tensors:
            shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
            raise BadInput(FIELD, str(path), f"has no tensor {name}; it has {shown or 'none'}", "check saes.kind")
    for name in names:
        if name not in shapes and name not in unused:
            problem = f"has a tensor {name}, which a dictionary of this kind does not have"
            raise BadInput(FIELD, str(path), problem, "check saes.kind and the dictionary's configuration")
    return [_float32(tensors[name], name, shape, path) for name, shape in shapes.items()]


def matrix_shape(tensors: Mapping[str, Any], name: str, path: Path) -> tuple[int, int]:
    """Of a tensor that must be a matrix."""
    shape = getattr(tensors.get(name), "shape", ())
    if len(shape) != 2 or 0 in shape:
        found = f"{name} of shape {tuple(shape)}" if name in tensors else ", ".join(sorted(map(str, tensors)))
        raise BadInput(FIELD, str(path), f"has no matrix {name}, but {found or 'nothing'}", "check saes.kind")
    return shape[0], shape[1]


def _float32(tensor: Any, name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    def refuse(problem: str, remedy: str = "download it again, or use another dictionary") -> BadInput:
        return BadInput(FIELD, str(path), f"tensor {name} {problem}", remedy)

    if not isinstance(tensor, Tensor):
        raise refuse(f"is no tensor but {type(tensor).__name__}")
    if not tensor.is_floating_point() or tensor.layout is not torch.strided:
        raise refuse(f"is of type {tensor.dtype}, {tensor.layout}", "store it as dense floating-point numbers")
    if _without_ones(tensor.shape) != _without_ones(shape):
        found = f"has shape {tuple(tensor.shape)} where configuration and format call for {shape}"
        raise refuse(found, "take configuration and weights of one dictionary, and check saes.kind")
    values = tensor.detach().float().reshape(shape)
    if not all_finite(values):
        of_file = all_finite(tensor.detach().double())
        raise refuse("holds values too large for float32" if of_file else "holds NaN or infinite values")
    return values


def all_finite(values: Tensor) -> bool:
    """Without a copy of the size of `values`: extremes are NaN where one value is."""
    return bool(torch.stack(values.aminmax()).isfinite().all())


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _native(array: np.ndarray) -> np.ndarray:
    """In this machine's byte order, and at most 64 bits a number: what torch takes."""
    if array.dtype.kind not in "fiub":
        raise TypeError(f"an array of type {array.dtype}, not of real numbers")
    if array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    """BadInput for whatever a parser raises at bytes that are nothing of its format."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = "" if "pickle" in str(error) else f" ({error})"  # numpy's message on pickles advises to run them
        raise BadInput(FIELD, str(path), f"is not {what}{reason}", "check saes.kind, or download it again") from error
