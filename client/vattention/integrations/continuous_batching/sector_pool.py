"""The sectors of a paged attention cache of transformers, with leased pages behind those that are in use."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from transformers.generation.continuous_batching.cache_allocators.cache_pool import CachePool, RegularTrees

from vatt.errors import Draining, LimitExceeded, PoolExhausted, SessionFenced
from vatt.pages import Extent, FreeExtents
from vattention.block_memory import BlockMemory
from vattention.kvcache import PageHome
from vattention.page_cache import PageUser, deal
from vattention.page_source import LeasePurpose

# What an engine answers by letting requests wait or begin anew. SessionFenced: vattd is being started anew.
SHORT = (PoolExhausted, LimitExceeded, Draining, SessionFenced)


class SectorPages:
    """A session's pages as the store of a BlockMemory, for the purpose that they are wanted for now.

    With a `wait_s`, pages are leased in turn with those of other tenants, and waited for.
    """

    def __init__(self, session: PageHome, user: PageUser) -> None:
        self._session = session
        self._user = user
        self.purpose = LeasePurpose.GROW
        self.wait_s = 0.0

    def take(self, runs: Sequence[int], after: Sequence[int | None] | None = None) -> list[list[Extent]]:
        """As PageCache.take; idle pages of the session's other caches serve where vattd has too few."""
        pages = self._session.pages
        try:
            return pages.take(runs, after, self.purpose)
        except (PoolExhausted, LimitExceeded):
            if pages.reclaim(sum(runs), self._user):
                return pages.take(runs, after, self.purpose)
            if not self.wait_s:
                raise
        leased = self._session.lease(sum(runs), purpose=LeasePurpose.ADMIT, wait_s=self.wait_s)
        return deal(FreeExtents(leased), runs)

    def put(self, extents: Sequence[Extent]) -> None:
        self._session.pages.put(extents)


class SectorPool(CachePool):
    """Counts as free only the sectors that memory has been found for, so a scheduler that sees too few of them does
    what it does when the cache is full.

    Invariant: there is memory behind the trash sectors, those that allocators have, and `_ready`, which are free.
    `_empty` are free as well and have none. Both are heaps, so that the lowest come first: sectors in use lie close
    together, and share pages with each other.
    """

    def __init__(self, num_sectors: int, num_allocators: int, memory: BlockMemory) -> None:
        self._memory = memory
        self._ready: list[int] = []
        self._empty: list[int] = []
        self.most_pages: float = math.inf  # that may be in use in this round
        self._refused: float = math.inf  # the fewest sectors that no memory was found for in this round
        super().__init__(num_sectors, num_allocators)
        memory.back(range(self.num_reserved_sectors))

    @property
    def num_free_sectors(self) -> int:
        return len(self._ready)

    @property
    def free_sectors(self) -> list[int]:  # type: ignore[override]
        """Those without memory as well: what the cache could hold."""
        return self._ready + self._empty

    @property
    def sectors_in_use(self) -> int:
        return self.num_sectors - len(self._ready) - len(self._empty)

    @property
    def pages_in_use(self) -> int:
        """Of trash, of allocators, and of sectors that are ready; not those that only wait for the device."""
        return self._memory.mapped_pages - self._memory.kept_pages

    def begin_round(self, most_pages: int) -> None:
        """Memory that was refused may be had by now."""
        self.most_pages, self._refused = most_pages, math.inf

    def secure(self, sector_count: int) -> bool:
        """Have so many free sectors with memory, or no more than before. In one round nobody asks in vain again."""
        missing = sector_count - len(self._ready)
        if missing <= 0:
            return True
        if missing > len(self._empty) or missing >= self._refused:
            return False
        sectors = [heapq.heappop(self._empty) for _ in range(missing)]
        try:
            self._memory.back(sectors)
        except BaseException as error:
            self._lay(self._empty, sectors)
            if not isinstance(error, SHORT):
                raise
            self._refused = missing
            return False
        self._lay(self._ready, sectors)
        if self.pages_in_use > self.most_pages:  # with pages that the session still had at hand
            self.give_back()
            self._refused = missing
            return False
        return True

    def give_back(self) -> None:
        """Let go of all memory that no request needs, as soon as the device is done with it."""
        self._memory.drop(self._ready)
        self._lay(self._empty, self._ready)
        self._ready = []
        self._memory.trim(self._memory.kept_pages)

    def reset(self) -> None:
        reserved = self.num_reserved_sectors
        sectors = range(reserved, reserved + self.num_sectors)
        self._ready = [sector for sector in sectors if self._memory.is_backed(sector)]
        self._empty = [sector for sector in sectors if not self._memory.is_backed(sector)]  # sorted: heaps
        self._free_blocks = [RegularTrees(count) for count in self.blocks_per_sector]

    def allocate_sector(self, index: int) -> None:
        self._free_blocks[index].add_tree(heapq.heappop(self._ready))

    def try_to_free_sectors(self) -> None:
        for blocks in self._free_blocks:
            self._lay(self._ready, blocks.delete_full_trees())

    def free_blocks(self, index: int, block_ids: list[int]) -> None:
        """Sectors come free with their last block, not when somebody looks for some."""
        super().free_blocks(index, block_ids)
        self._lay(self._ready, self._free_blocks[index].delete_full_trees())

    @staticmethod
    def _lay(heap: list[int], sectors: Sequence[int]) -> None:
        for sector in sectors:
            heapq.heappush(heap, sector)
