"""A torch tensor over an address range that is mostly unmapped.

The tensor does not own its memory and cannot keep it: whoever makes one keeps the range reserved for as long as the
tensor or any view of it may be used. Nothing here touches the memory, nor asks the driver about it: a CUDA driver
asked about an unmapped address answers that it is host memory, and torch would then believe it (so no DLPack, no
`from_blob`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vatt.errors import InvalidRequest
from vattention.layout import Geometry, Layout
from vattention.vmm.driver import Device


def torch_device(device: Device) -> torch.device:
    """Where tensors over this device's pages are."""
    return torch.device("cuda", device.ordinal) if device.backend == "cuda" else torch.device("cpu")


class RangeTensors:
    """A KV cache's tensors over its address range."""

    def __init__(self, geometry: Geometry, address: int, device: torch.device) -> None:
        self._geometry = geometry
        self._address = address
        self._device = device
        size_bytes = geometry.virtual_bytes
        self._bytes = tensor_from_address(address, size_bytes, torch.uint8, (size_bytes,), (1,), device)
        self._layers = [
            (self._view(layer, is_value=False), self._view(layer, is_value=True))
            for layer in range(geometry.spec.num_layers)
        ]

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V: [slots, tokens, heads, size], strided."""
        return self._layers[index]

    def as_upstream(self) -> list[torch.Tensor]:
        """`megacache`: K and V, [slots, tokens, layers, heads, size]. Else K of every layer, then V of every layer."""
        spec = self._geometry.spec
        has_value = spec.value_size > 0
        if self._geometry.layout is Layout.MEGACACHE:
            return [self._all_layers(is_value=kind) for kind in (False, True) if has_value or not kind]
        values = [value for _, value in self._layers] if has_value else []
        return [key for key, _ in self._layers] + values

    def memory(self, offset_bytes: int, size_bytes: int) -> torch.Tensor:
        """Bytes of the range, wherever they are; they must be mapped."""
        return self._bytes.narrow(0, offset_bytes, size_bytes)

    def _view(self, layer: int, *, is_value: bool) -> torch.Tensor:
        spec = self._geometry.spec
        size = spec.value_size if is_value else spec.head_size
        place = self._place(layer, is_value=is_value)
        shape = (spec.max_batch_size, spec.max_context_length, spec.num_kv_heads, size)
        stride = (place.row, place.token, place.head or max(1, size), 1)
        return self._tensor(place, shape, stride)

    def _all_layers(self, *, is_value: bool) -> torch.Tensor:
        spec = self._geometry.spec
        size = spec.value_size if is_value else spec.head_size
        place = self._place(0, is_value=is_value)
        shape = (spec.max_batch_size, spec.max_context_length, spec.num_layers, spec.num_kv_heads, size)
        stride = (place.row, place.token, spec.num_kv_heads * size, size, 1)
        return self._tensor(place, shape, stride)

    def _tensor(self, place: _Place, shape: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
        if shape[-1] == 0:  # a model without V
            return torch.empty(shape, dtype=self._geometry.spec.dtype, device=self._device)
        dtype, size_bytes = self._geometry.spec.dtype, self._geometry.virtual_bytes
        return tensor_from_address(self._address, size_bytes, dtype, shape, stride, self._device, place.start)

    def _place(self, layer: int, *, is_value: bool) -> _Place:
        """Where a layer's K or V of the first slot's first token is, and how far it is to the next ones."""
        geometry, spec = self._geometry, self._geometry.spec
        bands = geometry.bands
        if geometry.layout is Layout.FUSED:
            band, column, start = bands[0], 0, layer * (spec.key_bytes + spec.value_bytes) + is_value * spec.key_bytes
        else:
            values_first_column = bands[0].column_count // 2 if len(bands) == 1 and is_value else 0
            band = bands[-1] if is_value else bands[0]
            column = values_first_column + layer * geometry.columns_per_layer
            start = 0 if geometry.columns_per_layer else layer * (spec.value_bytes if is_value else spec.key_bytes)
        start += band.offset_bytes + column * band.column_bytes
        head_bytes = band.column_bytes if geometry.layout is Layout.PER_HEAD else 0
        itemsize = spec.dtype.itemsize
        return _Place(*(size // itemsize for size in (start, band.row_bytes, band.token_bytes, head_bytes)))


@dataclass(frozen=True, slots=True)
class _Place:
    """In elements: the first one, and the way to the next slot's, the next token's and the next head's."""

    start: int
    row: int
    token: int
    head: int  # 0: beside the one before


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
