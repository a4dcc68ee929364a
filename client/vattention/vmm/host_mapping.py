"""Mapping host pages: slabs that vattd handed over, mapped into reserved address ranges.

Linux counts mappings per process (vm.max_map_count, 65,530 by default) and merges neighbours only if they are the
same in every respect: same file, adjoining offsets, same flags. So consecutive pages are mapped in one call, every
mapping gets the same advice, and unmapping puts back exactly what the reservation was. Mappings of huge pages are
never merged, so with those every `map` of a run is a mapping; they are large enough for that.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from vatt.errors import DriverError, SystemLimit
from vatt.pages import ZONE_PAGES, Extent
from vattention.vmm import libc
from vattention.vmm.driver import HandleKind, Placement
from vattention.vmm.host_physical import HOST, check_host_page_size
from vattention.vmm.limits import MappingBudget, require_fds
from vattention.vmm.mapping_table import TableAnswers
from vattention.vmm.os_call import os_call

_RESERVED = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE
_READ_WRITE = libc.PROT_READ | libc.PROT_WRITE


@dataclass(slots=True)
class _Slab:
    """One zone's slab in this process, held while any of its pages is imported."""

    fd: int
    size_bytes: int
    page_count: int = 0  # imported


class HostMapping(TableAnswers):
    """The mapping half for host memory. Misuse is refused by the table, see there."""

    def __init__(self, page_size_bytes: int, budget: MappingBudget | None = None) -> None:
        check_host_page_size(page_size_bytes)
        self.device = HOST
        self.page_size_bytes = page_size_bytes
        self._budget = budget or MappingBudget()
        super().__init__(page_size_bytes)
        self._slabs: dict[int, _Slab] = {}  # by zone

    def reserve(self, size_bytes: int) -> int:
        self._table.check_reserve(size_bytes)
        self._budget.require(1)
        # mmap aligns to the system's page only: reserve a page more, then trim both ends.
        slack_bytes = self.page_size_bytes - os.sysconf("SC_PAGE_SIZE")
        with ExitStack() as undo:
            start = _reserve(size_bytes + slack_bytes)
            end = start + size_bytes + slack_bytes
            # Only what is ours still: another thread may have mapped something where we have trimmed.
            undo.callback(lambda: os_call("munmap", libc.munmap, start, end - start))
            address = -(-start // self.page_size_bytes) * self.page_size_bytes
            if address > start:
                os_call("munmap", libc.munmap, start, address - start)
                start = address
            if address + size_bytes < end:
                os_call("munmap", libc.munmap, address + size_bytes, end - address - size_bytes)
            undo.pop_all()
        self._table.add_reservation(address, size_bytes)
        return address

    def free(self, address: int, size_bytes: int) -> None:
        self._table.check_free(address, size_bytes)
        self._budget.note(1)  # a neighbour of ours may be one mapping with it
        os_call("munmap", libc.munmap, address, size_bytes)
        self._table.drop_reservation(address)

    def zone_fds(self) -> dict[int, int]:
        fds: dict[int, int] = {}
        with ExitStack() as undo:
            for zone, slab in self._slabs.items():
                fds[zone] = os_call("dup", os.dup, slab.fd)
                undo.callback(os.close, fds[zone])
            undo.pop_all()
        return fds

    def missing_fds(self, extent: Extent) -> list[int]:
        return [] if extent.zone in self._slabs else [extent.first]

    def import_pages(self, extent: Extent, placement: Placement, fds: Sequence[int]) -> None:
        self._table.check_import(extent)
        expected = Placement(HandleKind.SLAB_FD, self.page_size_bytes, extent.index * self.page_size_bytes)
        if placement != expected:
            raise DriverError(f"{extent} is at {placement}, not at {expected}", call="import_pages")
        if len(fds) != len(self.missing_fds(extent)):
            raise DriverError(f"{extent} came with {len(fds)} descriptors", call="import_pages")
        size_bytes = self._sealed_size_bytes(fds[0]) if fds else self._slabs[extent.zone].size_bytes
        end_bytes = placement.offset_bytes + extent.page_count * self.page_size_bytes
        if size_bytes < end_bytes:
            raise DriverError(f"the slab has {size_bytes} bytes, the pages end at {end_bytes}", call="import_pages")
        if fds:
            require_fds(1)
            self._slabs[extent.zone] = _Slab(os_call("dup", os.dup, fds[0]), size_bytes)
        self._slabs[extent.zone].page_count += extent.page_count
        self._table.add_import(extent)

    def release(self, extent: Extent) -> None:
        self._table.check_release(extent)
        slab = self._slabs[extent.zone]
        slab.page_count -= extent.page_count
        if slab.page_count == 0:
            os.close(self._slabs.pop(extent.zone).fd)
        self._table.drop_import(extent)

    def map(self, address: int, extents: Sequence[Extent]) -> None:
        self._table.check_map(address, extents)
        runs = list(_runs(extents))
        # Each run is a mapping, and what is left of the reservation on the far side is one more.
        self._budget.require(len(runs) + 1)
        end = address
        with ExitStack() as undo:
            for run in runs:
                size_bytes = run.page_count * self.page_size_bytes
                undo.callback(_put_back, end, size_bytes)
                self._map_run(end, size_bytes, run)
                end += size_bytes
            # A forked child must not outlive its parent with these pages mapped: vattd takes the parent's exit for
            # the end of them. No flag of mmap says so; a fork between these calls is the caller's race.
            os_call("madvise", libc.madvise, address, end - address, libc.MADV_DONTFORK)
            undo.pop_all()
        self._table.add_mapped(address, extents)

    def unmap(self, address: int, size_bytes: int) -> list[Extent]:
        self._table.check_unmap(address, size_bytes)
        self._budget.note(2)  # at worst the range lies in the middle of one mapping
        _put_back(address, size_bytes)
        return self._table.drop_mapped(address, size_bytes)

    def close(self) -> None:
        with ExitStack() as parts:
            while self._slabs:
                parts.callback(os.close, self._slabs.popitem()[1].fd)
            for address, size_bytes in self._table.reservations():
                parts.callback(os_call, "munmap", libc.munmap, address, size_bytes)  # with all that is mapped in it
            self._table.close()

    def _sealed_size_bytes(self, fd: int) -> int:
        """The size of a slab. Refuses what could be cut short under our mappings (touching them would raise SIGBUS),
        and huge pages that ours would be parts of: those can neither be mapped nor unmapped in parts."""
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            # Not st_blksize: that is 2 MiB too where small pages may become large ones (shmem_enabled).
            size_bytes, unit_bytes = os.fstat(fd).st_size, os.fstatvfs(fd).f_bsize
        except OSError as failure:
            raise DriverError(f"descriptor {fd} is no memfd: {failure}", call="import_pages") from failure
        if not seals & fcntl.F_SEAL_SHRINK:
            raise DriverError(f"descriptor {fd} is not sealed against shrinking", call="import_pages")
        if self.page_size_bytes % unit_bytes:
            raise DriverError(
                f"the slab has huge pages of {unit_bytes} bytes, ours have {self.page_size_bytes}", call="import_pages"
            )
        return size_bytes

    def _map_run(self, address: int, size_bytes: int, run: Extent) -> None:
        slab, offset_bytes = self._slabs[run.zone].fd, run.index * self.page_size_bytes
        # Else to map a huge page that vattd has just destroyed would reserve one for as long as the slab lives.
        flags = libc.MAP_SHARED | libc.MAP_FIXED | libc.MAP_NORESERVE
        os_call("mmap", libc.mmap, address, size_bytes, _READ_WRITE, flags, slab, offset_bytes)


def _put_back(address: int, size_bytes: int) -> None:
    """Make a range reserved and empty again, in one call; with equal neighbours it merges into one mapping."""
    os_call("mmap", libc.mmap, address, size_bytes, libc.PROT_NONE, _RESERVED | libc.MAP_FIXED)


def _reserve(size_bytes: int) -> int:
    try:
        return libc.mmap(0, size_bytes, libc.PROT_NONE, _RESERVED)
    except (OSError, OverflowError) as error:
        raise SystemLimit(
            f"no room for an address range of {size_bytes} bytes: a process has 128 TiB of addresses on most machines, "
            "or what `ulimit -v` leaves; ask for fewer slots or a shorter context"
        ) from error


def _runs(extents: Sequence[Extent]) -> Iterator[Extent]:
    """The same pages in the same order, extents that follow each other in one slab joined."""
    run: Extent | None = None
    for extent in extents:
        if run is not None and run.end == extent.first and extent.first % ZONE_PAGES:
            run = Extent(run.first, run.page_count + extent.page_count)
            continue
        if run is not None:
            yield run
        run = extent
    if run is not None:
        yield run
