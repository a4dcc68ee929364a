"""vLLM's pool of blocks, in which a block costs pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, KVCacheBlock

from vattention.integrations.vllm.budget import NULL_BLOCK, Budget


class PagedBlockPool(BlockPool):
    """Hands out blocks for which the budget has room.

    A free block is either *idle*: nobody uses it, but a prefix is cached in it, and its memory stays; or *bare*: it has
    no memory. vLLM's queue holds the idle ones, the least recently used first; the budget knows the bare ones. Bare
    blocks are used before cached prefixes are evicted, as in vLLM.
    """

    def __init__(self, budget: Budget, **options: Any) -> None:
        super().__init__(**options)
        if self.null_block.block_id != NULL_BLOCK:
            raise RuntimeError(f"vLLM's null block is {self.null_block.block_id}, and memory is behind block 0")
        self._budget = budget
        self._counts_bare_blocks = False
        for block in self.blocks:
            block.prev_free_block = block.next_free_block = None
        self.free_block_queue = FreeKVCacheBlockQueue([])

    @property
    def idle_count(self) -> int:
        """Blocks that nobody uses and that have memory."""
        return int(self.free_block_queue.num_free_blocks)

    @property
    def used_count(self) -> int:
        """Blocks that requests use; the null block is none."""
        return self._budget.taken_blocks - self.idle_count - 1

    def get_num_free_blocks(self) -> int:
        """Blocks that could be had now: bare ones as far as there is memory for them, and the idle ones."""
        bare = self._budget.bare_blocks if self._counts_bare_blocks else self._budget.room()
        return self.idle_count + bare

    def get_usage(self) -> float:
        """The part in use of the blocks that there is memory for."""
        in_reach = self.used_count + self.get_num_free_blocks()
        return self.used_count / in_reach if in_reach else 0.0

    def get_new_blocks(self, num_blocks: int) -> list[KVCacheBlock]:
        available = self.get_num_free_blocks()
        if num_blocks > available:
            raise ValueError(f"Cannot get {num_blocks} free blocks from the pool")
        bare_count = min(num_blocks, available - self.idle_count)
        bare = [self.blocks[self._budget.take()] for _ in range(bare_count)]
        self.free_block_queue.prepend_n(bare)
        blocks: list[KVCacheBlock] = super().get_new_blocks(num_blocks)
        return blocks

    def free_blocks(self, ordered_blocks: Iterable[KVCacheBlock]) -> None:
        blocks = list(ordered_blocks)
        super().free_blocks(blocks)
        ended = {id(block): block for block in blocks if block.ref_cnt == 0 and block.block_hash is None}
        self._strip(ended.values())

    def evict_blocks(self, block_ids: set[int]) -> None:
        super().evict_blocks(block_ids)
        self._strip(block for block in map(self.blocks.__getitem__, block_ids) if block.ref_cnt == 0)

    def evict_idle(self, page_count: int) -> None:
        """Evict cached prefixes, the least recently used first, until so many more pages are free or none is left."""
        wanted = self._budget.free_pages + page_count
        while self._budget.free_pages < wanted and self.idle_count:
            self._evict(self.free_block_queue.popleft())

    def keep_idle(self, block_count: int) -> None:
        """Evict the least recently used prefixes beyond so many blocks."""
        while self.idle_count > block_count:
            self._evict(self.free_block_queue.popleft())

    def reset_prefix_cache(self) -> bool:
        with self._counting_bare_blocks():  # vLLM finds out by the count of free blocks whether any is in use
            done: bool = super().reset_prefix_cache()
        if done:
            self._strip(self.free_block_queue.get_all_free_blocks())
        return done

    def _strip(self, idle: Iterable[KVCacheBlock]) -> None:
        """Make idle blocks bare."""
        for block in list(idle):
            if not block.is_null and block.pool is self:
                self.free_block_queue.remove(block)
                self._budget.drop(block.block_id)

    def _evict(self, block: KVCacheBlock) -> None:
        if self._reuse_watchers:
            self._notify_reuse([block])
        self._maybe_evict_cached_block(block)
        self._budget.drop(block.block_id)

    @contextmanager
    def _counting_bare_blocks(self) -> Iterator[None]:
        self._counts_bare_blocks = True
        try:
            yield
        finally:
            self._counts_bare_blocks = False
