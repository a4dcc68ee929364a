"""Which blocks of a paged cache have memory promised to them, and which to use next. Pure."""

from __future__ import annotations

import heapq

from vatt.pages import LedgerBug


class Clusters:
    """The blocks of a cache, taken and bare, by clusters: blocks that share pages (see BlockGeometry).

    Memory is promised to whole clusters. Invariants: a cluster is open while a block of it is taken; `rides` counts
    the bare blocks of open clusters, which cost nothing more. The lowest block is taken first, so that what is in use
    stays together.
    """

    def __init__(self, block_count: int, cluster_blocks: int) -> None:
        self._block_count = block_count
        self._cluster_blocks = cluster_blocks
        self._is_taken = bytearray(block_count)
        self._taken_in = [0] * -(-block_count // cluster_blocks)
        self._closed = list(range(len(self._taken_in)))  # a heap
        self._rides: list[int] = []  # a heap of bare blocks of open clusters; some may be so no more
        self._is_queued = bytearray(block_count)
        self.rides = 0
        self.open_count = 0
        self.taken_count = 0

    @property
    def bare_count(self) -> int:
        return self._block_count - self.taken_count

    def room(self, cluster_count: int) -> int:
        """Bare blocks that could be taken if so many more clusters may be opened."""
        if cluster_count >= len(self._taken_in) - self.open_count:
            return self.bare_count  # the last cluster, which may be smaller, is opened last
        return self.rides + cluster_count * self._cluster_blocks

    def is_taken(self, block: int) -> bool:
        return bool(self._is_taken[block])

    def take(self) -> int:
        """The next block to use. Raises LedgerBug if all are taken."""
        block = self._next_ride()
        if block is None:
            block = self._open()
        self._is_taken[block] = 1
        self._taken_in[block // self._cluster_blocks] += 1
        self.taken_count += 1
        self.rides -= 1
        return block

    def drop(self, block: int) -> None:
        """Make a taken block bare. Raises LedgerBug if it is that already."""
        if not self._is_taken[block]:
            raise LedgerBug(f"block {block} is dropped and was not taken")
        cluster = block // self._cluster_blocks
        self._is_taken[block] = 0
        self._taken_in[cluster] -= 1
        self.taken_count -= 1
        if self._taken_in[cluster]:
            self.rides += 1
            self._queue(block)
        else:
            self.open_count -= 1
            self.rides -= len(self._blocks_of(cluster)) - 1
            heapq.heappush(self._closed, cluster)

    def _next_ride(self) -> int | None:
        while self._rides:
            block = heapq.heappop(self._rides)
            self._is_queued[block] = 0
            if not self._is_taken[block] and self._taken_in[block // self._cluster_blocks]:
                return block
        return None

    def _open(self) -> int:
        if not self._closed:
            raise LedgerBug("all blocks are taken")
        cluster = heapq.heappop(self._closed)
        blocks = self._blocks_of(cluster)
        self.open_count += 1
        self.rides += len(blocks)
        for block in blocks[1:]:
            self._queue(block)
        return blocks[0]

    def _queue(self, block: int) -> None:
        if not self._is_queued[block]:
            self._is_queued[block] = 1
            heapq.heappush(self._rides, block)

    def _blocks_of(self, cluster: int) -> range:
        first = cluster * self._cluster_blocks
        return range(first, min(first + self._cluster_blocks, self._block_count))
