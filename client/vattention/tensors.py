"""A torch tensor over an address range that is mostly unmapped.

The tensor does not own its memory and cannot keep it: whoever makes one keeps the range reserved for as long as the
tensor or any view of it may be used. Nothing here touches the memory, nor asks the driver about it: a CUDA driver
asked about an unmapped address answers that it is host memory, and torch would then believe it (so no DLPack, no
`from_blob`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vatt.errors import InvalidRequest


def tensor_from_address(
    address: int,
    size_bytes: int,
    dtype: torch.dtype,
    shape: Sequence[int],
    stride: Sequence[int],
    device: torch.device,
    offset_elements: int = 0,
) -> torch.Tensor:
    """A strided tensor over `size_bytes` from `address`. Strides and offset count elements, as torch's do."""
    last = offset_elements + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if min(shape) < 1 or offset_elements < 0 or (last + 1) * dtype.itemsize > size_bytes:
        raise InvalidRequest(f"shape {tuple(shape)} with stride {tuple(stride)} does not fit in {size_bytes} bytes")
    construct = getattr(torch._C, "_construct_storage_from_data_pointer", None)
    if construct is not None:
        storage = construct(address, device, size_bytes)
        return torch.empty(0, dtype=dtype, device=device).set_(storage, offset_elements, tuple(shape), tuple(stride))
    if device.type == "cpu":
        flat = _flat_cpu(address, size_bytes)
    else:
        # torch >= 2.9 asks the driver nothing if the device comes with its index.
        flat = torch.as_tensor(_CudaArray(address, size_bytes), device=torch.device("cuda", device.index or 0))
    return flat.view(dtype).as_strided(tuple(shape), tuple(stride), offset_elements)


class _CudaArray:
    """Bytes on the device, by the public protocol; it has no names for bfloat16 or fp8, so the caller views them."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def _flat_cpu(address: int, size_bytes: int) -> torch.Tensor:
    import ctypes

    return torch.frombuffer((ctypes.c_uint8 * size_bytes).from_address(address), dtype=torch.uint8)
