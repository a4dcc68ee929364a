"""Host pages without a daemon: both halves of the host driver in one process, and a device that works on them."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vatt.errors import Draining, PoolExhausted
from vatt.pages import Extent, FreeExtents, page_count_of
from vatt.usage import Usage
from vattention.kvcache import Closeable, KVCache
from vattention.mapper import Mapper
from vattention.page_cache import PageCache
from vattention.page_source import LeasePurpose
from vattention.vmm.host_mapping import HostMapping
from vattention.vmm.host_physical import HostPhysical


class HostPages:
    """Stands for a session: lends pages of one slab, and counts what was asked of it."""

    def __init__(
        self,
        page_count: int = 4096,
        page_size_bytes: int = 4096,
        mapper_of: Callable[[HostMapping], Mapper] = Mapper,
    ) -> None:
        self._physical = HostPhysical(page_size_bytes)
        self._free = FreeExtents([Extent(0, page_count)])
        self._lock = threading.Lock()
        self._dependents: list[Closeable] = []
        self.pool_pages = page_count
        self.leased_pages = 0
        self.lease_count = 0
        self.is_draining = False
        self.driver = HostMapping(page_size_bytes)
        self.mapper = mapper_of(self.driver)
        self.pages = PageCache(self, lambda: Usage(mapped_pages=self.mapper.mapped_pages))

    def lease(
        self,
        page_count: int,
        *,
        min_page_count: int = 0,
        purpose: LeasePurpose = LeasePurpose.GROW,
        wait_s: float = 0.0,
    ) -> list[Extent]:
        with self._lock:
            self.lease_count += 1
            if self._free.page_count < (min_page_count or page_count):
                raise PoolExhausted(page_count, self._free.page_count)
            extents = self._free.take(page_count)
            self.leased_pages += page_count_of(extents)
            for extent in extents:
                self._physical.create(extent)
                fds = [self._physical.export(page) for page in self.mapper.missing_fds(extent)]
                self.mapper.import_pages(extent, self._physical.placement(extent), fds)
                for fd in fds:
                    os.close(fd)
            return extents

    def give_back(self, extents: Sequence[Extent]) -> None:
        with self._lock:
            for extent in extents:
                self.mapper.release(extent)
                self._physical.destroy(extent)
                self._free.give_back(extent)
            self.leased_pages -= page_count_of(extents)

    def report_usage(self, usage: Usage) -> None:
        pass

    def check_admits(self) -> None:
        if self.is_draining:
            raise Draining("no new requests")

    def close_first(self, dependent: Closeable) -> None:
        self._dependents.append(dependent)

    def close(self) -> None:
        for dependent in self._dependents:
            dependent.close()
        self.pages.close()
        self.mapper.close()
        self._physical.close()


class Work:
    """Stands for a device's stream: work that uses addresses, one piece after the other.

    Invariant, checked at every unmap of a WatchedMapper: the program knows of all work that uses an address, by a proof
    that it asked or waited for, that it is over. That the work has long been over is no excuse.
    """

    def __init__(self) -> None:
        self.submitted = self.over = self.known = 0
        self.waits = 0  # for work that was not over
        self._last_use: defaultdict[int, int] = defaultdict(int)  # by address, in units of the smallest page

    def fence(self) -> WorkProof:
        return WorkProof(self, self.submitted)

    def use(self, cache: KVCache, slot: int, token_count: int) -> None:
        """Submit work on the first tokens of a slot."""
        self.submitted += 1
        if token_count == 0:
            return
        for layer in range(cache.spec.num_layers):
            for view in cache.layer(layer):
                if view.numel():
                    end = view[slot, token_count - 1].data_ptr() + view[slot, 0].nbytes
                    begin = view[slot, 0].data_ptr()
                    self.note(begin, end - begin)

    def note(self, address: int, size_bytes: int) -> None:
        """The last piece of work uses these addresses."""
        for unit in range(address >> 12, (address + size_bytes - 1 >> 12) + 1):
            self._last_use[unit] = self.submitted

    def check_unused(self, address: int, size_bytes: int) -> None:
        for unit in range(address >> 12, address + size_bytes >> 12):
            assert self._last_use[unit] <= self.known, "work may still use what is unmapped"

    def finish(self) -> None:
        self.over = self.submitted


@dataclass
class WorkProof:
    """That the first pieces of work are over."""

    work: Work
    number: int

    def done(self) -> bool:
        if self.work.over >= self.number:
            self.work.known = max(self.work.known, self.number)
        return self.work.over >= self.number

    def wait(self) -> None:
        self.work.waits += self.work.over < self.number
        self.work.over = max(self.work.over, self.number)
        self.work.known = max(self.work.known, self.number)


class WatchedMapper(Mapper):
    """A mapper that unmaps nothing which work may still use."""

    def __init__(self, driver: HostMapping) -> None:
        super().__init__(driver)
        self.work = Work()

    def unmap(self, address: int, page_count: int) -> list[Extent]:
        self.work.check_unused(address, page_count * self.page_size_bytes)
        return super().unmap(address, page_count)


def working_host(page_count: int = 4096, page_size_bytes: int = 4096) -> tuple[HostPages, Work]:
    """Pages, and the work that keeps them from being unmapped too early."""
    mappers: list[WatchedMapper] = []

    def mapper_of(driver: HostMapping) -> Mapper:
        mappers.append(WatchedMapper(driver))
        return mappers[0]

    return HostPages(page_count, page_size_bytes, mapper_of), mappers[0].work


def page_ids_of(cache: KVCache, slot: int) -> Iterator[int]:
    """The pool's pages behind a row, of every column."""
    table, behind, host = cache._rows.table, cache._rows.behind, cache._mapper
    for band, place in enumerate(cache.geometry.bands):
        page_count = int(table.mapped[slot, band])
        for column in range(place.column_count if page_count else 0):
            address = cache._range.address + behind.offset_bytes(slot, band, column, 0)
            for extent in host.pages_at(address, page_count * cache.geometry.pool_pages_per_page):
                yield from extent.page_ids
