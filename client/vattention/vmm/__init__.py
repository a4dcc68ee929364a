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
    "host_page_size_bytes",
    "open_mapping",
    "open_physical",
    "uses_mps",
]

HOST_PAGE_SIZE_BYTES = 64 << 10
# The most pages of a host pool whose page size nobody chose. One engine may come to map all of them, in a layout with
# a column for every layer in runs of three to five pages (measured): well below vm.max_map_count, which is 65,530.
MAX_DEFAULT_HOST_PAGES = 1 << 17


def host_page_size_bytes(pool_bytes: int) -> int:
    """The default page size of a host pool: 64 KiB, and above 8 GiB the power of two that keeps its pages countable."""
    from vattention.vmm.host_physical import MAX_PAGE_SIZE_BYTES

    page_size_bytes = HOST_PAGE_SIZE_BYTES
    while pool_bytes > page_size_bytes * MAX_DEFAULT_HOST_PAGES and page_size_bytes < MAX_PAGE_SIZE_BYTES:
        page_size_bytes *= 2
    return page_size_bytes


def open_physical(
    device: str,
    page_size_bytes: int | None = None,
    headroom_bytes: int | None = None,
    *,
    huge_pages: bool = False,
) -> PhysicalDriver:
    """vattd's half for "host", a CUDA ordinal ("0") or a GPU's UUID ("GPU-...", "MIG-...").

    The default page size is 64 KiB on the host and the driver's granularity on a GPU. `headroom_bytes` is left to
    others: by default 256 MiB or 2 % of the host's memory, whichever is more, and nothing on a GPU.
    `huge_pages`, for the host only, takes the kernel's 2 MiB pages: that is then the default page size, and nothing is
    left to others, since they were set aside for this.
    Raises InvalidRequest for a page size that the device cannot have, DeviceNotFound, DriverError.
    """
    if huge_pages and device != "host":
        raise InvalidRequest(f"huge pages are the host's, and this is {device!r}: add --gpu host, or leave them out")
    if device == "host":
        from vattention.vmm.host_memory import HostMemory
        from vattention.vmm.host_physical import HostPhysical
        from vattention.vmm.host_slabs import HugeSlabs, Slabs, SmallSlabs
        from vattention.vmm.huge_memory import HUGE_PAGE_BYTES, HugeMemory

        slabs: Slabs
        if huge_pages:
            slabs, default_bytes = HugeSlabs(HugeMemory(headroom_bytes=headroom_bytes or 0)), HUGE_PAGE_BYTES
        else:
            slabs, default_bytes = SmallSlabs(HostMemory(headroom_bytes=headroom_bytes)), HOST_PAGE_SIZE_BYTES
        return HostPhysical(default_bytes if page_size_bytes is None else page_size_bytes, slabs)
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


def uses_mps(backend: str, uuid: str) -> bool:
    """Does this process reach the device through an MPS server? Raises DeviceNotFound if it does not see it at all."""
    if backend != "cuda":
        return False
    from vattention.vmm.cuda_device import find_device

    return find_device(uuid).uses_mps


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
