"""The virtual memory of one device: vattd's half makes pages, the engine's half maps them.

Both are protocols with two implementations, CUDA and host memory; `open_physical` and `open_mapping` choose. A
machine without a GPU, or without libcuda, imports this and uses host memory: CUDA is imported when it is asked for.
"""

from __future__ import annotations

from vatt.errors import DeviceNotFound, DriverError, InvalidRequest
from vattention.vmm.driver import Device, DeviceMemory, HandleKind, MappingDriver, PhysicalDriver, Placement

__all__ = [
    "HOST_PAGE_SIZE_BYTES",
    "Device",
    "DeviceMemory",
    "HandleKind",
    "MappingDriver",
    "PhysicalDriver",
    "Placement",
    "default_device",
    "device_uuid",
    "open_mapping",
    "open_physical",
]

HOST_PAGE_SIZE_BYTES = 64 << 10


def open_physical(device: str, page_size_bytes: int | None = None, headroom_bytes: int | None = None) -> PhysicalDriver:
    """vattd's half for "host", a CUDA ordinal ("0") or a GPU's UUID ("GPU-...", "MIG-...").

    The default page size is 64 KiB on the host and the driver's granularity on a GPU. `headroom_bytes` is left to
    others: by default 256 MiB or 2 % of the host's memory, whichever is more, and nothing on a GPU.
    Raises InvalidRequest for a page size that the device cannot have, DeviceNotFound, DriverError.
    """
    if device == "host":
        from vattention.vmm.host_memory import HostMemory
        from vattention.vmm.host_physical import HostPhysical

        memory = HostMemory(headroom_bytes=headroom_bytes)
        return HostPhysical(HOST_PAGE_SIZE_BYTES if page_size_bytes is None else page_size_bytes, memory)
    if not device.isdecimal() and not device.startswith(("GPU-", "MIG-")):
        raise InvalidRequest(f"not a device: {device!r}; give host, a GPU's number or its UUID (nvidia-smi -L)")
    from vattention.vmm.cuda_physical import CudaPhysical

    return CudaPhysical(device, page_size_bytes, headroom_bytes or 0)


def open_mapping(backend: str, uuid: str, page_size_bytes: int) -> MappingDriver:
    """The engine's half, for the device that vattd named with `Device.backend` and `Device.uuid`."""
    if backend == "host":
        from vattention.vmm.host_mapping import HostMapping

        return HostMapping(page_size_bytes)
    if backend != "cuda":
        raise InvalidRequest(f"no such backend: {backend!r}")
    from vattention.vmm.cuda_mapping import CudaMapping

    return CudaMapping(uuid, page_size_bytes)


def device_uuid(device: str) -> str:
    """What both sides call a device that is named as in `open_physical`. Only a number needs the driver."""
    if not device.isdecimal():
        return device
    from vattention.vmm.cuda_device import find_device

    return find_device(device).uuid


def default_device() -> str:
    """The first GPU, "0", if there is one that works, else "host". Asking starts CUDA: do not fork afterwards."""
    from vattention.vmm.cuda_device import device_count

    try:
        return "0" if device_count() > 0 else "host"
    except (DeviceNotFound, DriverError):
        return "host"
