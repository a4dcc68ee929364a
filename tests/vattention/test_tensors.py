from __future__ import annotations

import ctypes

import pytest
import torch

from vatt.errors import InvalidRequest
from vattention.layout import Geometry, KVCacheSpec, Layout
from vattention.tensors import RangeTensors, tensor_from_address

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


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("value_head_size", [None, 3, 0])
@pytest.mark.parametrize("layout", Layout, ids=lambda layout: layout.value)
def test_the_views_of_all_layers_cover_every_tokens_bytes_once(
    layout: Layout, value_head_size: int | None, dtype: torch.dtype
) -> None:
    spec = KVCacheSpec(3, 2, 5, dtype, 2, 300, layout, value_head_size)
    geometry = Geometry.of(spec, "host", 4096)
    memory = torch.zeros(geometry.virtual_bytes, dtype=torch.uint8)
    tensors = RangeTensors(geometry, memory.data_ptr(), CPU)
    for layer in range(spec.num_layers):
        for view in tensors.layer(layer):
            if view.numel():
                view.view(torch.uint8).add_(1)
    assert int(memory.max()) == 1
    assert int(memory.sum(dtype=torch.int64)) == 2 * 300 * spec.token_bytes
    for whole in tensors.as_upstream():
        whole.view(torch.uint8).zero_()
    assert not memory.any()
    memory[100:200] = 7
    assert tensors.memory(100, 100).eq(7).all()
