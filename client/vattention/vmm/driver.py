"""The seam to the hardware: what vattd needs of a device, and what an engine needs to map its pages.

Both protocols speak of page ids, which vattd's ledger deals out; each driver keeps its own table from page id to what
its device calls a page (a `CUmemGenericAllocationHandle`, or a range of a slab). So nobody but a driver ever holds a
device handle, and a double release, which CUDA leaves undefined, cannot be asked for.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vatt.errors import DriverError
from vatt.pages import Extent, page_count_of


class HandleKind(enum.Enum):
    """How a page travels to another process."""

    POSIX_FD = "posix_fd"  # CUDA: one fd a page
    SLAB_FD = "slab_fd"  # host: one fd a slab (= a zone); a page is a range of it


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an extent's memory is behind its fd. CUDA: each page has its own fd, offset 0."""

    kind: HandleKind
    page_size_bytes: int
    offset_bytes: int  # of the extent's first page; on the host the others follow, one page size apart

    def __post_init__(self) -> None:
        if self.page_size_bytes < 1 or self.offset_bytes < 0:
            raise ValueError(f"not a placement: {self}")
        if self.kind is HandleKind.POSIX_FD and self.offset_bytes != 0:
            raise ValueError(f"a CUDA page starts at offset 0 of its handle: {self}")


@dataclass(frozen=True, slots=True)
class Device:
    """A device that pages are made of. `uuid` is what both sides name it by: ordinals differ between processes."""

    backend: str  # "cuda" or "host"
    uuid: str  # NVML's form, GPU-xxxxxxxx-...; "host" for host memory
    name: str
    ordinal: int = 0  # CUDA's, in this process; 0 for the host
    uses_mps: bool = False  # this process reaches it through an MPS server


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The device's memory as its owner counts it (NVML; on the host MemAvailable and the cgroup), not as we do."""

    total_bytes: int
    free_bytes: int  # what could be created now, headroom taken off
    pages_bytes: int  # physical bytes behind our pages: the kernel's count (st_blocks of all slabs); CUDA: as created


class NotReleased(DriverError):
    """The driver did not let go of these pages, which are there as before; the others of the call have gone."""

    def __init__(self, extents: Sequence[Extent], refusal: DriverError) -> None:
        super().__init__(f"{page_count_of(extents)} pages stay: {refusal}", refusal.call, refusal.code)
        self.extents = list(extents)


class PhysicalDriver(Protocol):
    """What vattd needs of one device. Raises DriverError (and its children) and SystemLimit only.

    Every call is all or nothing, but for `destroy`, which cannot be undone. Not thread-safe: vattd calls it from its
    one driver thread.
    """

    device: Device
    page_size_bytes: int
    fresh_is_zero: bool  # may a created page be lent without a scrub?
    recycles_across_tenants: bool  # False: a page that leaves a tenant is destroyed and its bytes created elsewhere
    # What a scrub's context took of the device (CUDA), measured as it was made; 0 while there is none, None if it could
    # not be told. Any thread may read it.
    context_bytes: int | None

    def create(self, extent: Extent) -> None:
        """Back the extent's pages with memory. Raises OutOfMemory, and creates none, if the device is short."""

    def destroy(self, extent: Extent) -> None:
        """Give the memory of created pages back to the device. What others still map stays charged until they unmap.
        Raises NotReleased where it kept some of them; after DeviceLost any of them may be there."""

    def scrub(self, extent: Extent) -> None:
        """Zero created pages. On return the zeros are there for whoever maps the pages next."""

    def placement(self, extent: Extent) -> Placement:
        """Where the pages are behind their fds. Arithmetic only; opens nothing."""

    def export(self, page_id: int) -> int:
        """A new fd for a created page, close-on-exec; the caller closes it. It pins the memory while open (CUDA)."""

    def memory(self) -> DeviceMemory: ...

    def drop_zone(self, zone: int) -> None:
        """Forget a zone without created pages, whose ids will never be used again."""

    # After the end of another vattd, whose pages engines still hold

    def zone_mark(self, zone: int) -> int | None:
        """What the zone's descriptor is known by, to whoever drives the device next; None where zones have none."""

    def adopt_zone(self, zone: int, fd: int, mark: int) -> None:
        """Take over a zone of another vattd's, by a descriptor that an engine kept; the caller closes it. Idempotent.
        Raises InvalidRequest unless it is the one of that mark."""

    def inherit(self, extent: Extent) -> None:
        """Pages that another vattd created and an engine holds, in an adopted zone where zones have marks: they can be
        destroyed, which is all that can be done with them."""

    def sweeper(self, zone: int) -> Callable[[], None]:
        """What gives back the memory of all pages of an adopted zone but the inherited ones. It may be called in any
        thread, once, and takes its time."""

    def close(self) -> None:
        """Release every page still held and the device; what refuses does not keep the rest. Idempotent."""


class MappingDriver(Protocol):
    """What an engine needs of one device. Raises DriverError (and its children) and SystemLimit only.

    Every call is all or nothing, but for `release`, which cannot be undone. Addresses are ints. Not thread-safe: the
    Mapper holds a lock around it.
    """

    device: Device
    page_size_bytes: int

    def reserve(self, size_bytes: int) -> int:
        """An address range with nothing behind it, aligned to the page size; `size_bytes` is a multiple of it."""

    def free(self, address: int, size_bytes: int) -> None:
        """Undo exactly one `reserve`. Refused while anything is mapped in it."""

    def zone_fds(self) -> dict[int, int]:
        """New descriptors of the zones that imported pages are in, by zone; the caller closes them. CUDA: none."""

    def missing_fds(self, extent: Extent) -> list[int]:
        """The pages of `extent` whose fd `import_pages` needs: CUDA all, host one if the slab is new, else none."""

    def import_pages(self, extent: Extent, placement: Placement, fds: Sequence[int]) -> None:
        """Take a reference to leased pages. `fds` are those of `missing_fds`, in its order; the caller closes them."""

    def release(self, extent: Extent) -> None:
        """Drop the references. Refused while one of the pages is mapped anywhere. Raises NotReleased where the driver
        kept some of them; after DeviceLost any of them may be there."""

    def map(self, address: int, extents: Sequence[Extent]) -> None:
        """Map imported pages one after the other from `address`, readable and writable. Raises SystemLimit before
        the process's mapping limit is passed. An address that is mapped is refused.

        A page may be mapped at several addresses, also by one call: they are the same bytes. On a GPU, what one
        operation (a kernel, a copy) writes at one of them is seen at the others by the operations that begin after it,
        and not before."""

    def unmap(self, address: int, size_bytes: int) -> list[Extent]:
        """Undo `map` for whole, contiguous mapped pages, and say which they were. Other addresses of the same pages
        stay mapped. The device must have stopped using these."""

    def pages_at(self, address: int, size_bytes: int) -> list[Extent]:
        """The pages mapped in a range, in the order of addresses and as few extents as that allows. As `unmap`, it
        refuses a range that is not all mapped."""

    def unmapped_of(self, extents: Sequence[Extent]) -> list[Extent]:
        """Those of these pages that are mapped nowhere, in the order given: what `unmap` took the last address of."""

    def run_count(self, address: int, size_bytes: int) -> int:
        """Stretches of a range in which both addresses and pages are consecutive, gaps between them or not."""

    @property
    def mapped_page_count(self) -> int:
        """How many pages are mapped. One that is mapped at several addresses counts once."""

    def close(self) -> None:
        """Unmap, release and free everything; what refuses does not keep the rest. Idempotent."""
