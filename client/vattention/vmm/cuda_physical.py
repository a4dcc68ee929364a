"""Pages of GPU memory: one cuMemCreate a page, since CUDA can neither split a handle nor map a part of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from vatt.errors import DriverError
from vatt.pages import Extent
from vattention.vmm.cuda_call import bindings, call, call_at_close
from vattention.vmm.cuda_device import allocation_prop, check_cuda_page_size, find_device, granularity_bytes
from vattention.vmm.cuda_release import release_pages
from vattention.vmm.cuda_scrub import CudaScrubber
from vattention.vmm.driver import DeviceMemory, HandleKind, Placement
from vattention.vmm.extent_set import ExtentSet
from vattention.vmm.limits import require_fds
from vattention.vmm.nvml import NvmlMemory


class CudaPhysical:
    """The physical half for a GPU. It needs cuInit and no context, until something must be scrubbed.

    Invariant: `_handles` holds exactly the created pages, each with the one reference that its cuMemCreate gave.
    A release of anything else is undefined in CUDA, so no handle leaves this class. `_inherited` are pages without one:
    another vattd created them.
    """

    fresh_is_zero = False  # nowhere documented, and NVIDIA's own libraries treat fresh memory as dirty
    recycles_across_tenants = True

    def __init__(self, spec: str, page_size_bytes: int | None = None, headroom_bytes: int = 0) -> None:
        """`headroom_bytes` is taken off what `memory` calls free; creating is the driver's to refuse."""
        self.device = find_device(spec)
        if page_size_bytes is None:
            page_size_bytes = granularity_bytes(self.device)
        check_cuda_page_size(self.device, page_size_bytes)
        self.page_size_bytes = page_size_bytes
        self._headroom_bytes = headroom_bytes
        self._prop = allocation_prop(self.device)
        self._handles: dict[int, int] = {}
        self._inherited = ExtentSet()
        self._scrubber: CudaScrubber | None = None
        self._nvml: NvmlMemory | None = None
        self.context_bytes: int | None = 0
        self._closed = False

    def create(self, extent: Extent) -> None:
        if self._closed:
            raise DriverError("used after close()", call="create")
        if not self._handles.keys().isdisjoint(extent.page_ids):
            raise DriverError(f"some of {extent} is created already", call="create")
        handles: list[int] = []
        with ExitStack() as undo:
            undo.callback(_release_all, handles)
            for _ in range(extent.page_count):
                handles.append(int(call("cuMemCreate", self.page_size_bytes, self._prop, 0)))
            undo.pop_all()
        self._handles.update(zip(extent.page_ids, handles, strict=True))

    def destroy(self, extent: Extent) -> None:
        if self._inherited.covers(extent):  # their holder released the last handle
            self._inherited.remove(extent)
            return
        self._handles_of(extent, "destroy")
        if self._scrubber is not None:
            self._scrubber.tidy()  # what is mapped there would stay, released or not
        release_pages(self._handles, extent)

    def scrub(self, extent: Extent) -> None:
        handles = self._handles_of(extent, "scrub")
        if self._scrubber is None:
            self._scrubber = self._make_scrubber()
        self._scrubber.zero(handles)

    def placement(self, extent: Extent) -> Placement:
        return Placement(HandleKind.POSIX_FD, self.page_size_bytes, 0)

    def export(self, page_id: int) -> int:
        (handle,) = self._handles_of(Extent(page_id, 1), "export")
        require_fds(1)  # the driver would only say that something failed
        posix_fd = bindings().CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        fd = int(call("cuMemExportToShareableHandle", handle, posix_fd, 0))
        os.set_inheritable(fd, False)
        return fd

    def memory(self) -> DeviceMemory:
        total_bytes, free_bytes = self._read_nvml()
        return DeviceMemory(
            total_bytes=total_bytes,
            free_bytes=max(0, free_bytes - self._headroom_bytes),
            pages_bytes=len(self._handles) * self.page_size_bytes,
        )

    def drop_zone(self, zone: int) -> None:
        """A zone is only a name here: nothing is kept for it."""

    def zone_mark(self, zone: int) -> int | None:
        return None

    def adopt_zone(self, zone: int, fd: int, mark: int) -> None:
        raise DriverError(f"zone {zone} has no descriptor", call="adopt_zone")

    def inherit(self, extent: Extent) -> None:
        """Nothing is needed for it: the memory of a page goes when the last handle does, and the holder has that."""
        if self._inherited.overlaps(extent) or not self._handles.keys().isdisjoint(extent.page_ids):
            raise DriverError(f"{extent} cannot be inherited", call="inherit")
        self._inherited.add(extent)

    def sweeper(self, zone: int) -> Callable[[], None]:
        raise DriverError(f"zone {zone} has no descriptor", call="sweeper")

    def close(self) -> None:
        """Engines keep what they imported: the memory itself goes when the last of them releases it."""
        self._closed = True
        with ExitStack() as parts:
            while self._handles:
                parts.callback(call_at_close, "cuMemRelease", self._handles.popitem()[1])
            if self._nvml is not None:
                parts.callback(self._nvml.close)
            if self._scrubber is not None:
                parts.callback(self._scrubber.close)
            self._nvml = self._scrubber = None
            self.context_bytes = 0

    def _make_scrubber(self) -> CudaScrubber:
        """What it costs, only the device's free memory shows, which other programs change too: an estimate."""
        before_bytes = self._free_bytes()
        scrubber = CudaScrubber(self.device, self.page_size_bytes)
        after_bytes = self._free_bytes()
        self.context_bytes = None
        if before_bytes is not None and after_bytes is not None and after_bytes < before_bytes:
            self.context_bytes = before_bytes - after_bytes
        return scrubber

    def _free_bytes(self) -> int | None:
        try:
            return self._read_nvml()[1]
        except DriverError:  # to scrub is more important than to know what it costs
            return None

    def _read_nvml(self) -> tuple[int, int]:
        if self._nvml is None:
            self._nvml = NvmlMemory(self.device.uuid)
        return self._nvml.read()

    def _handles_of(self, extent: Extent, operation: str) -> list[int]:
        if not all(page_id in self._handles for page_id in extent.page_ids):
            raise DriverError(f"not all of {extent} is created", call=operation)
        return [self._handles[page_id] for page_id in extent.page_ids]


def _release_all(handles: Sequence[int]) -> None:
    for handle in handles:
        call("cuMemRelease", handle)
