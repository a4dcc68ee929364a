"""Host pages without a daemon: both halves of the host driver in one process."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from vatt.errors import PoolExhausted
from vatt.pages import Extent, FreeExtents, page_count_of
from vattention.kvcache import Closeable
from vattention.mapper import Mapper
from vattention.page_cache import PageCache
from vattention.page_source import LeasePurpose
from vattention.vmm.host_mapping import HostMapping
from vattention.vmm.host_physical import HostPhysical


class HostPages:
    """Stands for a session: lends pages of one slab, and counts what was asked of it."""

    def __init__(self, page_count: int = 4096, page_size_bytes: int = 4096) -> None:
        self._physical = HostPhysical(page_size_bytes)
        self._free = FreeExtents([Extent(0, page_count)])
        self._lock = threading.Lock()
        self._dependents: list[Closeable] = []
        self.leased_pages = 0
        self.lease_count = 0
        self.mapper = Mapper(HostMapping(page_size_bytes))
        self.pages = PageCache(self, lambda: self.mapper.mapped_pages)

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

    def report_usage(self, mapped_pages: int) -> None:
        pass

    def close_first(self, dependent: Closeable) -> None:
        self._dependents.append(dependent)

    def close(self) -> None:
        for dependent in self._dependents:
            dependent.close()
        self.pages.close()
        self.mapper.close()
        self._physical.close()
