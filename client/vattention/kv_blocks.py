"""A KV cache told of its rows by their lengths alone, and counted in KV blocks: the books of microsoft/vattention."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vatt.errors import InvalidRequest
from vattention.integers import as_integer
from vattention.keeper import KeepPolicy
from vattention.kvcache import KVCache, PageHome
from vattention.layout import Counts, KVCacheSpec, Layout, RowArithmetic


class KVBlocks:
    """One KVCache, a length for each of its rows, and a limit on its memory.

    Blocks are counted as upstream's callers count them, by themselves: they promise what they believe to be left, so a
    block that one side counts and the other does not is promised twice. A KV block is one page in each column of
    `counted_as`, the layout that the caller believes in, and holds the whole tokens that fit in such a page. The cache
    needs no more pages than are counted: it fills them to the last byte, and its own layout may put more layers into
    one.

    Invariants: a row is active exactly if its length is not 0, and then it is a slot in use; `free_blocks` follows from
    the limit and the lengths alone, whatever is mapped. One caller at a time.
    """

    def __init__(self, session: PageHome, spec: KVCacheSpec, counted_as: Layout) -> None:
        self.cache = KVCache(session, spec)
        geometry = self.cache.geometry
        self.lengths: Counts = np.zeros(spec.max_batch_size, dtype=np.int64)
        self.page_size_bytes = geometry.page_size_bytes
        (counted,) = dataclasses.replace(geometry, layout=counted_as).bands
        self.pages_per_block = counted.column_count
        self._pool_pages_per_block = self.pages_per_block * geometry.pool_pages_per_page
        self._counted_token_bytes = counted.token_bytes
        self._behind = RowArithmetic(geometry)
        self._session = session
        self._reserved_blocks: int | None = None

    # Counting

    @property
    def total_blocks(self) -> int:
        """What `reserve` said, but never more than the pool could lend now: a tenant's max may have been lowered."""
        most = self._session.pool_pages // self._pool_pages_per_block
        return most if self._reserved_blocks is None else min(self._reserved_blocks, most)

    @property
    def free_blocks(self) -> int:
        """What the limit leaves to further tokens. Negative where more was promised than there is: as many blocks have
        to be given up before the first is free again.

        Pages that are mapped ahead or kept count as free: they are given up when they are needed.
        """
        sum_of_rows = int(self._behind.pool_pages(self._behind.pages(self.lengths)).sum())
        shared_pages = sum_of_rows - self.cache.needed_pages(self.lengths)
        return self.total_blocks - sum(self.needed_blocks()) + shared_pages // self._pool_pages_per_block

    @property
    def unmapped_blocks(self) -> int:
        """What the limit leaves to further pages."""
        pages = self.cache.stats().mapped_bytes // self.page_size_bytes
        return max(0, self.total_blocks - -(-pages // self.pages_per_block))

    def mapped_blocks(self) -> list[int]:
        """Of each row, active or not."""
        pool_pages = self._behind.pool_pages(self.cache.mapped_pages())
        return [-(-int(count) // self._pool_pages_per_block) for count in pool_pages]

    def needed_blocks(self) -> list[int]:
        """Of each row, for its length. Where not one token fits in a page, ceil(length * token / page)."""
        tokens_per_page = self.page_size_bytes // self._counted_token_bytes
        if tokens_per_page:
            return [-(-int(length) // tokens_per_page) for length in self.lengths]
        return [-(-int(length) * self._counted_token_bytes // self.page_size_bytes) for length in self.lengths]

    # Memory

    def reserve(self, size_bytes: int) -> int:
        """Limit the cache to whole KV blocks within so much memory; the pages of it that the pool could lend now. A
        later call never lowers the limit.

        It takes no memory: other tenants share the pool, and a step may find it short all the same.
        """
        size_bytes = as_integer(size_bytes, "the memory to reserve")
        if size_bytes < 0:
            raise InvalidRequest(f"{size_bytes} bytes to reserve")
        blocks = max(size_bytes // self.page_size_bytes // self.pages_per_block, self._reserved_blocks or 0)
        self.cache.set_budget(blocks * self._pool_pages_per_block)
        self._reserved_blocks = blocks
        return self.total_blocks * self.pages_per_block

    def keep_finished(self, *, keep: bool) -> None:
        """Whether rows keep pages, up to a limit, when they are no longer active."""
        self.cache.keep_finished(KeepPolicy().finished_fraction if keep else 0.0)

    def release(self) -> None:
        """Have no row active any more, and give every page back."""
        self.cache.release()
        self.lengths[:] = 0

    # Rows

    @property
    def is_full(self) -> bool:
        return bool(self.lengths.all())

    def allocate(self, length: int) -> int:
        """Activate the row whose kept pages fit so many tokens best. What they lack is mapped in the background.

        With length 0 the row stays inactive, and is the answer again. Raises InvalidRequest if all are active.
        """
        row = self.cache.acquire_slot(length)
        if length == 0:
            self.cache.free_slot(row)
        self.lengths[row] = length
        return row

    def free(self, row: int) -> None:
        """Have a row inactive, if it is not already."""
        row = as_integer(row, "a row")
        if not 0 <= row < len(self.lengths):
            raise InvalidRequest(f"row {row} of {len(self.lengths)}")
        if self.lengths[row]:
            self.cache.free_slot(row)
            self.lengths[row] = 0

    def step(self, lengths: Sequence[int]) -> None:
        """Back so many tokens of every row, and activate and end rows accordingly: all of it, or an error and nothing.

        Raises what KVCache.step raises.
        """
        self.cache.step(lengths, zero_ends=True)
        self.lengths[:] = lengths
