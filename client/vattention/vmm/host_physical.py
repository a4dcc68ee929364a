"""Pages of host memory: ranges of sparse memfds, one memfd ("slab") a zone, so one a tenant."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice

from vatt.errors import DriverError, InvalidRequest, VattError
from vatt.pages import ZONE_PAGES, Extent
from vatt.sizes import format_size
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
# How many gaps between created pages are searched for strays at a time: some 2 us each where none is, and all tenants
# wait for them.
_GAPS_AT_ONCE = 32


def check_host_page_size(page_size_bytes: int, least_bytes: int | None = None) -> None:
    """Raises InvalidRequest unless it is a power of two from the least, the system's page size by default, to 4 MiB."""
    least = least_bytes or os.sysconf("SC_PAGE_SIZE")
    if page_size_bytes & (page_size_bytes - 1) or not least <= page_size_bytes <= MAX_PAGE_SIZE_BYTES:
        raise InvalidRequest(
            f"a host page of {format_size(page_size_bytes)}: it must be a power of two from {format_size(least)} to "
            f"{format_size(MAX_PAGE_SIZE_BYTES)}"
        )


def slab_size_bytes(page_size_bytes: int) -> int:
    """A slab spans its whole zone, since a sealed one cannot grow. It is sparse: unbacked offsets cost nothing."""
    return ZONE_PAGES * page_size_bytes


@dataclass(slots=True, eq=False)
class _Slab:
    """One zone's. The search for strays goes on at the page `search_from`. An earlier vattd's is not searched: what
    looks like a stray may be a page there that somebody holds and has not named yet."""

    fd: int
    zone_pages: Extent
    is_adopted: bool = False
    created: ExtentSet = field(default_factory=ExtentSet)
    search_from: int = 0

    def __post_init__(self) -> None:
        self.search_from = self.zone_pages.first

    def gaps(self) -> Iterator[Extent]:
        """Where no created page is, beginning where the search left off."""
        first, middle, end = self.zone_pages.first, self.search_from, self.zone_pages.end
        yield from self.created.gaps(Extent(middle, end - middle))
        if first < middle:
            yield from self.created.gaps(Extent(first, middle - first))

    def searched(self, gap: Extent) -> None:
        self.search_from = gap.end if gap.end < self.zone_pages.end else self.zone_pages.first


class HostPhysical:
    """The physical half for host memory.

    Created pages are committed: fallocate takes the memory there and then, so a lent page cannot fail to be there
    when it is touched. Invariant: a range of a slab is committed exactly while its pages are in `created` there.
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
        self._slabs: dict[int, _Slab] = {}  # by zone
        self._closed = False

    def create(self, extent: Extent) -> None:
        if self._closed:
            raise DriverError("used after close()", call="create")
        if self._has_some_of(extent):
            raise DriverError(f"some of {extent} is created already", call="create")
        size_bytes = extent.page_count * self.page_size_bytes
        self._kind.memory.require(size_bytes)
        with ExitStack() as undo:
            slab = self._slab(extent.zone, undo)
            offset_bytes = extent.index * self.page_size_bytes
            undo.callback(os_call, "fallocate", libc.punch, slab.fd, offset_bytes, size_bytes)
            for at in range(0, size_bytes, _ALLOCATE_STEP_BYTES):
                step_bytes = min(_ALLOCATE_STEP_BYTES, size_bytes - at)
                self._kind.allocate(slab.fd, offset_bytes + at, step_bytes)
            undo.pop_all()
        slab.created.add(extent)

    def destroy(self, extent: Extent) -> None:
        slab = self._slab_of(extent, "destroy")
        os_call("fallocate", libc.punch, slab.fd, *self._range(extent))
        slab.created.remove(extent)
        if not slab.is_adopted:
            with suppress(VattError):  # the pages have gone; strays go with the next ones that do
                self._drop_strays(slab)

    def scrub(self, extent: Extent) -> None:
        """Zeros are written over the old bytes, in the place where they are."""
        self._kind.zero(self._slab_of(extent, "scrub").fd, *self._range(extent))

    def placement(self, extent: Extent) -> Placement:
        return Placement(HandleKind.SLAB_FD, self.page_size_bytes, extent.index * self.page_size_bytes)

    def export(self, page_id: int) -> int:
        return os_call("dup", os.dup, self._slab_of(Extent(page_id, 1), "export").fd)

    def memory(self) -> DeviceMemory:
        room = self._kind.memory.read()
        free_bytes = room.available_bytes - self._kind.memory.headroom_of(room.total_bytes)
        return DeviceMemory(
            total_bytes=room.total_bytes,
            free_bytes=max(0, free_bytes),
            pages_bytes=sum(os_call("fstat", os.fstat, slab.fd).st_blocks * 512 for slab in self._slabs.values()),
        )

    def drop_zone(self, zone: int) -> None:
        """Forget the slab of a zone that has no created pages left and will have none again."""
        if zone not in self._slabs:
            return
        if self._slabs[zone].created.page_count:
            raise DriverError(f"zone {zone} has created pages", call="drop_zone")
        os.close(self._slabs.pop(zone).fd)

    def zone_mark(self, zone: int) -> int | None:
        """The slab's inode: while anybody has the slab, no other memfd has the same."""
        slab = self._slabs.get(zone)
        return None if slab is None else os_call("fstat", os.fstat, slab.fd).st_ino

    def adopt_zone(self, zone: int, fd: int, mark: int) -> None:
        if zone in self._slabs:
            return
        if not is_slab(fd, slab_size_bytes(self.page_size_bytes), mark):
            raise InvalidRequest(f"descriptor {fd} is not the slab of zone {zone}")
        self._slabs[zone] = _Slab(os_call("dup", os.dup, fd), _pages_of(zone), is_adopted=True)

    def inherit(self, extent: Extent) -> None:
        if extent.zone not in self._slabs or self._has_some_of(extent):
            raise DriverError(f"{extent} cannot be inherited", call="inherit")
        self._slabs[extent.zone].created.add(extent)

    def sweeper(self, zone: int) -> Callable[[], None]:
        slab = os_call("dup", os.dup, self._slabs[zone].fd)
        gaps = list(self._slabs[zone].created.gaps(_pages_of(zone)))

        def sweep() -> None:
            try:
                for gap in gaps:
                    os_call("fallocate", libc.punch, slab, *self._range(gap))
            finally:
                os.close(slab)

        return sweep

    def close(self) -> None:
        """The kernel frees a slab once nobody holds or maps it; engines keep what they have."""
        self._closed = True
        while self._slabs:
            os.close(self._slabs.popitem()[1].fd)

    def _range(self, extent: Extent) -> tuple[int, int]:
        """Offset and size."""
        return extent.index * self.page_size_bytes, extent.page_count * self.page_size_bytes

    def _drop_strays(self, slab: _Slab) -> None:
        """Whoever has a slab can put memory where no page is, which would stay as long as the slab. Some of it goes."""
        if os_call("fstat", os.fstat, slab.fd).st_blocks * 512 <= slab.created.page_count * self.page_size_bytes:
            return
        for gap in islice(slab.gaps(), _GAPS_AT_ONCE):
            os_call("fallocate", libc.punch, slab.fd, *self._range(gap))
            slab.searched(gap)

    def _has_some_of(self, extent: Extent) -> bool:
        """Is any of these pages created?"""
        slab = self._slabs.get(extent.zone)
        return slab is not None and slab.created.overlaps(extent)

    def _slab_of(self, extent: Extent, call: str) -> _Slab:
        """The slab of created pages; `call` is what they are wanted for."""
        slab = self._slabs.get(extent.zone)
        if slab is None or not slab.created.covers(extent):
            raise DriverError(f"not all of {extent} is created", call=call)
        return slab

    def _slab(self, zone: int, undo: ExitStack) -> _Slab:
        """The zone's slab; a new one goes again when `undo` is unwound."""
        if zone not in self._slabs:
            self._slabs[zone] = _Slab(self._kind.make(slab_size_bytes(self.page_size_bytes)), _pages_of(zone))
            undo.callback(self.drop_zone, zone)
        return self._slabs[zone]


def _pages_of(zone: int) -> Extent:
    return Extent(zone * ZONE_PAGES, ZONE_PAGES)
