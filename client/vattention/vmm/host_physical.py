"""Pages of host memory: ranges of sparse memfds, one memfd ("slab") a zone, so one a tenant."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress

from vatt.errors import DriverError, InvalidRequest, VattError
from vatt.pages import ZONE_PAGES, Extent
from vattention.vmm import libc
from vattention.vmm.driver import Device, DeviceMemory, HandleKind, Placement
from vattention.vmm.extent_set import ExtentSet
from vattention.vmm.host_memory import HostMemory
from vattention.vmm.host_slabs import Slabs, SmallSlabs, is_slab
from vattention.vmm.os_call import os_call

HOST = Device(backend="host", uuid="host", name="host memory")

# Larger pages than this and the slab of a zone would pass the largest file there can be (2**63 - 1 bytes).
MAX_PAGE_SIZE_BYTES = 4 << 20

# How much one fallocate commits: a signal makes the kernel undo the call under way, and it is begun again.
_ALLOCATE_STEP_BYTES = 64 << 20


def check_host_page_size(page_size_bytes: int, least_bytes: int | None = None) -> None:
    """Raises InvalidRequest unless it is a power of two from the least, the system's page size by default, to 4 MiB."""
    least = least_bytes or os.sysconf("SC_PAGE_SIZE")
    if page_size_bytes & (page_size_bytes - 1) or not least <= page_size_bytes <= MAX_PAGE_SIZE_BYTES:
        raise InvalidRequest(
            f"a host page of {page_size_bytes} bytes: it must be a power of two from {least} to {MAX_PAGE_SIZE_BYTES}"
        )


def slab_size_bytes(page_size_bytes: int) -> int:
    """A slab spans its whole zone, since a sealed one cannot grow. It is sparse: unbacked offsets cost nothing."""
    return ZONE_PAGES * page_size_bytes


class HostPhysical:
    """The physical half for host memory.

    Created pages are committed: fallocate takes the memory there and then, so a lent page cannot fail to be there
    when it is touched. Invariant: a range of a slab is committed exactly while its pages are in `_created`.
    """

    fresh_is_zero = True
    # A page that moves between tenants is punched in one slab and committed in the other: that is its scrub.
    recycles_across_tenants = False
    context_bytes: int | None = 0

    def __init__(self, page_size_bytes: int, slabs: Slabs | None = None) -> None:
        self._kind = slabs or SmallSlabs(HostMemory())
        check_host_page_size(page_size_bytes, self._kind.unit_bytes)
        self.device = HOST
        self.page_size_bytes = page_size_bytes
        self._slabs: dict[int, int] = {}  # fd by zone
        self._adopted: set[int] = set()  # those of them that are an earlier vattd's
        self._created = ExtentSet()
        self._closed = False

    def create(self, extent: Extent) -> None:
        if self._closed:
            raise DriverError("used after close()", call="create")
        if self._created.overlaps(extent):
            raise DriverError(f"some of {extent} is created already", call="create")
        size_bytes = extent.page_count * self.page_size_bytes
        self._kind.memory.require(size_bytes)
        with ExitStack() as undo:
            slab = self._slab(extent.zone, undo)
            offset_bytes = extent.index * self.page_size_bytes
            undo.callback(os_call, "fallocate", libc.punch, slab, offset_bytes, size_bytes)
            for at in range(0, size_bytes, _ALLOCATE_STEP_BYTES):
                step_bytes = min(_ALLOCATE_STEP_BYTES, size_bytes - at)
                self._kind.allocate(slab, offset_bytes + at, step_bytes)
            undo.pop_all()
        self._created.add(extent)

    def destroy(self, extent: Extent) -> None:
        self._check_created(extent, "destroy")
        os_call("fallocate", libc.punch, *self._range(extent))
        self._created.remove(extent)
        if extent.zone not in self._adopted:  # in an earlier vattd's, pages may be held that we do not know of yet
            with suppress(VattError):  # the pages have gone; strays go with the next ones that do
                self._drop_strays(extent.zone)

    def scrub(self, extent: Extent) -> None:
        """Zeros are written over the old bytes, in the place where they are."""
        self._check_created(extent, "scrub")
        self._kind.zero(*self._range(extent))

    def placement(self, extent: Extent) -> Placement:
        return Placement(HandleKind.SLAB_FD, self.page_size_bytes, extent.index * self.page_size_bytes)

    def export(self, page_id: int) -> int:
        extent = Extent(page_id, 1)
        self._check_created(extent, "export")
        return os_call("dup", os.dup, self._slabs[extent.zone])

    def memory(self) -> DeviceMemory:
        room = self._kind.memory.read()
        free_bytes = room.available_bytes - self._kind.memory.headroom_of(room.total_bytes)
        return DeviceMemory(
            total_bytes=room.total_bytes,
            free_bytes=max(0, free_bytes),
            pages_bytes=sum(os_call("fstat", os.fstat, slab).st_blocks * 512 for slab in self._slabs.values()),
        )

    def drop_zone(self, zone: int) -> None:
        """Forget the slab of a zone that has no created pages left and will have none again."""
        if self._created.overlaps(Extent(zone * ZONE_PAGES, ZONE_PAGES)):
            raise DriverError(f"zone {zone} has created pages", call="drop_zone")
        slab = self._slabs.pop(zone, None)
        self._adopted.discard(zone)
        if slab is not None:
            os.close(slab)

    def zone_mark(self, zone: int) -> int | None:
        """The slab's inode: while anybody has the slab, no other memfd has the same."""
        slab = self._slabs.get(zone)
        return None if slab is None else os_call("fstat", os.fstat, slab).st_ino

    def adopt_zone(self, zone: int, fd: int, mark: int) -> None:
        if zone in self._slabs:
            return
        if not is_slab(fd, slab_size_bytes(self.page_size_bytes), mark):
            raise InvalidRequest(f"descriptor {fd} is not the slab of zone {zone}")
        self._slabs[zone] = os_call("dup", os.dup, fd)
        self._adopted.add(zone)

    def inherit(self, extent: Extent) -> None:
        if extent.zone not in self._slabs or self._created.overlaps(extent):
            raise DriverError(f"{extent} cannot be inherited", call="inherit")
        self._created.add(extent)

    def sweeper(self, zone: int) -> Callable[[], None]:
        slab = os_call("dup", os.dup, self._slabs[zone])
        gaps = list(self._created.gaps(Extent(zone * ZONE_PAGES, ZONE_PAGES)))

        def sweep() -> None:
            try:
                for gap in gaps:
                    offset_bytes = gap.index * self.page_size_bytes
                    os_call("fallocate", libc.punch, slab, offset_bytes, gap.page_count * self.page_size_bytes)
            finally:
                os.close(slab)

        return sweep

    def close(self) -> None:
        """The kernel frees a slab once nobody holds or maps it; engines keep what they have."""
        self._closed = True
        while self._slabs:
            os.close(self._slabs.popitem()[1])
        self._created = ExtentSet()

    def _range(self, extent: Extent) -> tuple[int, int, int]:
        """Slab, offset and size of created pages."""
        return self._slabs[extent.zone], extent.index * self.page_size_bytes, extent.page_count * self.page_size_bytes

    def _drop_strays(self, zone: int) -> None:
        """Whoever has a slab can put memory where no page is. It would stay as long as the slab."""
        slab = self._slabs[zone]
        gaps = list(self._created.gaps(Extent(zone * ZONE_PAGES, ZONE_PAGES)))
        created_pages = ZONE_PAGES - sum(gap.page_count for gap in gaps)
        if os_call("fstat", os.fstat, slab).st_blocks * 512 > created_pages * self.page_size_bytes:
            for gap in gaps:
                offset_bytes = gap.index * self.page_size_bytes
                os_call("fallocate", libc.punch, slab, offset_bytes, gap.page_count * self.page_size_bytes)

    def _check_created(self, extent: Extent, call: str) -> None:
        if not self._created.covers(extent):
            raise DriverError(f"not all of {extent} is created", call=call)

    def _slab(self, zone: int, undo: ExitStack) -> int:
        """The zone's slab; a new one goes again when `undo` is unwound."""
        if zone not in self._slabs:
            self._slabs[zone] = self._kind.make(slab_size_bytes(self.page_size_bytes))
            undo.callback(self.drop_zone, zone)
        return self._slabs[zone]
