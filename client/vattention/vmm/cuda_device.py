"""Finding a GPU, and asking what it can do. cuInit and no more: a context would cost hundreds of MB of its memory."""

from __future__ import annotations

import uuid
from typing import Any

from vatt.errors import DeviceNotFound, DriverError, InvalidRequest
from vattention.vmm.cuda_call import bindings, call
from vattention.vmm.driver import Device

UUID_PREFIXES = ("GPU-", "MIG-")

_REQUIRED = {
    "CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED": "virtual memory management",
    "CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED": "sharing memory by file descriptor",
}


def device_count() -> int:
    """How many GPUs this process sees. Raises DeviceNotFound if there is no driver."""
    call("cuInit", 0)
    return int(call("cuDeviceGetCount"))


def find_device(spec: str) -> Device:
    """The GPU of an ordinal ("0") or a UUID ("GPU-...", "MIG-..."), checked for what pages need.

    CUDA_VISIBLE_DEVICES renumbers ordinals in each process, so between processes only the UUID is a name.
    """
    device_uuids = [_uuid_of(ordinal) for ordinal in range(device_count())]
    ordinal = _ordinal_of(spec, device_uuids)
    # CUDA gives the 16 bytes alone; that they are a MIG slice's is known only if the caller said so.
    prefix = spec[:4] if spec.startswith(UUID_PREFIXES) else UUID_PREFIXES[0]
    name = call("cuDeviceGetName", 256, ordinal).split(b"\0")[0].decode()
    device = Device("cuda", f"{prefix}{device_uuids[ordinal]}", name, ordinal, uses_mps=_uses_mps(ordinal))
    for attribute, ability in _REQUIRED.items():
        if not _attribute(attribute, ordinal):
            raise DriverError(f"{device.name} ({device.uuid}) does not support {ability}", "cuDeviceGetAttribute")
    return device


def _attribute(name: str, ordinal: int) -> int:
    return int(call("cuDeviceGetAttribute", getattr(bindings().CUdevice_attribute, name), ordinal))


def _uses_mps(ordinal: int) -> bool:
    """As far as the driver can tell: those before CUDA 12.3 do not know the attribute."""
    try:
        return _attribute("CU_DEVICE_ATTRIBUTE_MPS_ENABLED", ordinal) != 0
    except DriverError as unknown:
        if unknown.code != "CUDA_ERROR_INVALID_VALUE":
            raise
        return False


def _ordinal_of(spec: str, device_uuids: list[uuid.UUID]) -> int:
    if spec.isdecimal():
        if int(spec) >= len(device_uuids):
            raise DeviceNotFound(f"no GPU {spec}: this process sees {len(device_uuids)} (see CUDA_VISIBLE_DEVICES)")
        return int(spec)
    try:
        wanted = uuid.UUID(spec[4:])
    except ValueError as failure:
        raise InvalidRequest(f"not a GPU's UUID: {spec!r}; `nvidia-smi -L` lists them") from failure
    if wanted not in device_uuids:
        raise DeviceNotFound(f"no GPU {spec} is visible to this process: see nvidia-smi -L and CUDA_VISIBLE_DEVICES")
    return device_uuids.index(wanted)


def _uuid_of(ordinal: int) -> uuid.UUID:
    return uuid.UUID(bytes=bytes(call("cuDeviceGetUuid", ordinal).bytes))


def allocation_prop(device: Device) -> Any:
    """The properties that every page of the device is created with. The granularity depends on them, so it is asked
    with these same ones; the handle type cannot be added to an allocation later."""
    cuda = bindings()
    prop = cuda.CUmemAllocationProp()
    prop.type = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    prop.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    prop.location.id = device.ordinal
    prop.requestedHandleTypes = cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    return prop


def granularity_bytes(device: Device) -> int:
    flags = bindings().CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    return int(call("cuMemGetAllocationGranularity", allocation_prop(device), flags))


def check_cuda_page_size(device: Device, page_size_bytes: int) -> None:
    """Raises InvalidRequest unless it is a multiple of the granularity."""
    granularity = granularity_bytes(device)
    if page_size_bytes < 1 or page_size_bytes % granularity:
        raise InvalidRequest(
            f"a page of {page_size_bytes} bytes: on {device.name} it must be a multiple of {granularity}, as the "
            f"driver's smallest allocation is {granularity}; vAttention's smaller pages need a patched kernel driver, "
            "which exists for version 545.23.06 only and is unsafe between processes. The `fused` layout gets as few "
            f"tokens a page from the stock driver: {granularity} bytes of all layers in place of 64 KiB of one"
        )
