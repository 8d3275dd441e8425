"""The safetensors format without copies: a header and the memory of the tensors themselves.

Format: https://huggingface.co/docs/safetensors, 8 bytes of header length (little-endian), a JSON header padded
with spaces to 8 bytes, then the data of all tensors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.artifacts.manifest import TensorInfo

if TYPE_CHECKING:
    import torch

    Tensor = np.ndarray | torch.Tensor

NUMPY_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
TORCH_NAMES = NUMPY_NAMES | {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
NUMPY_TYPES = {code: np.dtype(name) for name, code in NUMPY_NAMES.items()}


def serialize(tensors: Mapping[str, Tensor]) -> tuple[list[memoryview], dict[str, TensorInfo]]:
    """Buffers that make up a safetensors file, and what it holds.

    The buffers are views of the tensors' memory (a tensor that is not contiguous or not on the CPU is copied).
    Tensors are laid out by the size of their elements, largest first, then by name, so that all are aligned.

    Raises:
        TypeError: a value is neither a numpy array nor a torch tensor, or of a type without a name there.
    """
    parts = {name: _memory(name, tensor) for name, tensor in tensors.items()}
    order = sorted(parts, key=lambda name: (-_item_size(tensors[name]), name))
    header: dict[str, Any] = {}
    start = 0
    for name in order:
        info, data = parts[name]
        header[name] = {**info.model_dump(), "data_offsets": [start, start + data.nbytes]}
        start += data.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    buffers = [memoryview(len(text).to_bytes(8, "little") + text), *(parts[name][1] for name in order)]
    return buffers, {name: parts[name][0] for name in sorted(parts)}


def deserialize(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as read-only views of ``data``, by name.

    bfloat16, which numpy lacks, becomes float32: exact, and of twice the size.

    Raises:
        TypeError: a tensor has a type that numpy lacks; read it with torch.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + length :]
    return {name: _array(name, info, body) for name, info in sorted(header.items())}


def deserialize_torch(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file as torch tensors on the CPU, by name."""
    from safetensors.torch import load

    return dict(sorted(load(data).items()))


def _memory(name: str, tensor: Any) -> tuple[TensorInfo, memoryview]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        dtype = TORCH_NAMES.get(str(tensor.dtype).removeprefix("torch."))
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(tensor, np.ndarray):
        dtype = NUMPY_NAMES.get(tensor.dtype.name)
        little = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)
        flat = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
    else:
        raise TypeError(f"tensor {name!r} is a {type(tensor).__name__}; give a numpy array or a torch tensor")
    if dtype is None:
        raise TypeError(f"tensor {name!r} has type {tensor.dtype}, which safetensors does not know")
    return TensorInfo(dtype=dtype, shape=list(tensor.shape)), memoryview(flat)


def _item_size(tensor: Any) -> int:
    return tensor.itemsize


def _array(name: str, info: Mapping[str, Any], body: memoryview) -> np.ndarray:
    start, end = info["data_offsets"]
    if info["dtype"] == "BF16":
        high = np.frombuffer(body[start:end], dtype="<u2").astype(np.uint32)
        return (high << 16).view(np.float32).reshape(info["shape"])
    if info["dtype"] not in NUMPY_TYPES:
        raise TypeError(f"tensor {name!r} has type {info['dtype']}, which numpy lacks; read it with torch_tensors")
    return np.frombuffer(body[start:end], dtype=NUMPY_TYPES[info["dtype"]]).reshape(info["shape"])
