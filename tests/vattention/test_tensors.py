from __future__ import annotations

import ctypes

import pytest
import torch

from vatt.errors import InvalidRequest
from vattention.tensors import tensor_from_address

CPU = torch.device("cpu")


@pytest.fixture(params=["storage", "public"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of making the tensor: torch's private storage constructor, and what remains without it."""
    if request.param == "public":
        monkeypatch.delattr(torch._C, "_construct_storage_from_data_pointer")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_the_tensor_is_the_memory_at_the_address(dtype: torch.dtype) -> None:
    memory = (ctypes.c_uint8 * 4096)()
    tensor = tensor_from_address(ctypes.addressof(memory), 4096, dtype, (4, 2, 3), (64, 8, 1), CPU, 16)
    assert (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset()) == (
        dtype,
        (4, 2, 3),
        (64, 8, 1),
        16,
    )
    tensor[1, 1, 2] = 1.0
    place = (16 + 64 + 8 + 2) * dtype.itemsize
    assert any(memory[place : place + dtype.itemsize])
    assert not any(memory[:place])


@pytest.mark.parametrize(
    ("shape", "stride", "offset"), [((2, 1024), (1024, 1), 0), ((1024,), (1,), 1), ((0,), (1,), 0), ((1,), (1,), -1)]
)
def test_a_shape_that_does_not_fit_is_refused(shape: tuple[int, ...], stride: tuple[int, ...], offset: int) -> None:
    memory = (ctypes.c_uint8 * 4096)()
    with pytest.raises(InvalidRequest):
        tensor_from_address(ctypes.addressof(memory), 4096, torch.float32, shape, stride, CPU, offset)
