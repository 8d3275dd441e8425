"""Tensors: safetensors as others read them, without copies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tasks.artifacts.tensors import NUMPY_TYPES, deserialize, deserialize_torch, serialize

arrays = st.sampled_from(sorted(NUMPY_TYPES.values(), key=str)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
names = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__" and name.isprintable())


def joined(tensors: dict) -> bytes:
    return b"".join(serialize(tensors)[0])


@given(st.dictionaries(names, arrays, max_size=4))
def test_numpy_round_trip(tensors: dict[str, np.ndarray]) -> None:
    buffers, infos = serialize(tensors)
    data = b"".join(buffers)
    back = deserialize(data)
    theirs = safetensors.numpy.load(data)
    assert list(back) == sorted(tensors) == list(infos)
    for name, tensor in tensors.items():
        for other in (back[name], theirs[name]):
            assert other.dtype == tensor.dtype
            assert other.shape == tensor.shape
            assert other.tobytes() == tensor.tobytes()
        assert infos[name].shape == list(tensor.shape)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.bool, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3)])
def test_torch_round_trip(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape).mul(3).to(dtype)
    data = joined({"b": tensor, "a": torch.arange(3)})
    for back in (deserialize_torch(data), safetensors.torch.load(data)):
        assert back["b"].dtype == dtype
        assert back["b"].shape == tensor.shape
        assert torch.equal(
            back["b"].view(torch.uint8) if shape else back["b"].float(),
            tensor.view(torch.uint8) if shape else tensor.float(),
        )
        assert back["a"].tolist() == [0, 1, 2]


def test_bfloat16_is_exact_in_numpy() -> None:
    tensor = torch.tensor([[1.0, -2.5, float("inf")], [3.14159, 1e-30, -0.0]], dtype=torch.bfloat16)
    back = deserialize(joined({"x": tensor}))["x"]
    assert back.dtype == np.float32
    assert np.array_equal(back, tensor.float().numpy())
    assert np.isnan(deserialize(joined({"x": tensor * float("nan")}))["x"]).all()


def test_what_numpy_lacks_is_refused() -> None:
    data = joined({"x": torch.zeros(2, dtype=torch.float8_e5m2)})
    with pytest.raises(TypeError, match="read it with torch_tensors"):
        deserialize(data)


def test_no_copies() -> None:
    array, tensor = np.zeros((1000, 10), np.float16), torch.zeros(1000, dtype=torch.bfloat16)
    buffers, _ = serialize({"array": array, "tensor": tensor})
    assert np.shares_memory(np.frombuffer(buffers[1], np.uint8), array)
    assert np.frombuffer(buffers[2], np.uint8).ctypes.data == tensor.data_ptr()
    data = b"".join(buffers)
    assert np.shares_memory(deserialize(data)["array"], np.frombuffer(data, np.uint8))


def test_views_and_byte_order() -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    values = {"strided": base[::2, 1::2], "transposed": base.T, "big_endian": base.astype(">f4")}
    back = deserialize(joined(values))
    for name, value in values.items():
        assert np.array_equal(back[name], value)
    turned = torch.from_numpy(base).T.requires_grad_()
    assert np.array_equal(deserialize(joined({"t": turned}))["t"], base.T)


def test_bytes_do_not_depend_on_the_order_of_names() -> None:
    tensors = {"b": np.zeros(3, np.uint8), "a": np.ones(2, np.float64), "c": np.ones(2, np.float16)}
    assert joined(tensors) == joined(dict(reversed(tensors.items())))


def test_every_tensor_is_aligned() -> None:
    tensors = {"a": np.zeros(3, np.uint8), "b": np.ones(3, np.float64), "c": np.ones(1, np.float16)}
    data = joined(tensors)
    for name, array in deserialize(data).items():
        assert (array.ctypes.data - np.frombuffer(data, np.uint8).ctypes.data) % array.itemsize == 0, name


@pytest.mark.parametrize("value", [[1, 2], np.array(["a"]), np.array([1 + 2j]), torch.zeros(2, dtype=torch.complex64)])
def test_others_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="tensor 'x'"):
        serialize({"x": value})


def test_torch_is_not_loaded_for_numpy() -> None:
    program = (
        "import sys, numpy as np; from tasks.artifacts.tensors import serialize, deserialize; "
        "deserialize(b''.join(serialize({'x': np.zeros(2)})[0])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
