"""A KV cache told of its rows by their lengths alone, and counted in KV blocks: the books of microsoft/vattention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vatt.errors import InvalidRequest
from vattention.integers import as_integer
from vattention.keeper import KeepPolicy
from vattention.kvcache import KVCache, PageHome
from vattention.layout import Counts, KVCacheSpec


class KVBlocks:
    """One KVCache, a length for each of its rows, and a limit on its memory.

    A KV block is what the same tokens take in the whole model: one page in each column of the layout. A row of n tokens
    needs ceil(n * bytes of a token in a column / page size) of them. Upstream counts whole tokens a page instead: where
    a page holds no whole number of them it needs more blocks, and never fewer.

    Invariants: a row is active exactly if its length is not 0, and then it is a slot in use; `free_blocks` follows from
    the limit and the lengths alone, whatever is mapped. One caller at a time.
    """

    def __init__(self, session: PageHome, spec: KVCacheSpec) -> None:
        self.cache = KVCache(session, spec)
        geometry = self.cache.geometry
        self.lengths: Counts = np.zeros(spec.max_batch_size, dtype=np.int64)
        self.page_size_bytes = geometry.page_size_bytes
        self.pages_per_block = sum(band.column_count for band in geometry.bands)
        self._pool_pages_per_block = self.pages_per_block * geometry.pool_pages_per_page
        self._session = session
        self._reserved_blocks: int | None = None

    # Counting

    @property
    def total_blocks(self) -> int:
        """What `reserve` said; before, as many as the pool could ever lend."""
        return self._most_blocks if self._reserved_blocks is None else self._reserved_blocks

    @property
    def _most_blocks(self) -> int:
        return self._session.pool_pages // self._pool_pages_per_block

    @property
    def free_blocks(self) -> int:
        """What the limit leaves to further tokens; 0 too where more was promised than there is.

        Pages that are mapped ahead or kept count as free: they are given up when they are needed.
        """
        return max(0, self.total_blocks - self.cache.needed_pages(self.lengths) // self._pool_pages_per_block)

    @property
    def unmapped_blocks(self) -> int:
        """What the limit leaves to further pages."""
        pages = self.cache.stats().mapped_bytes // self.page_size_bytes
        return max(0, self.total_blocks - pages // self.pages_per_block)

    def mapped_blocks(self) -> list[int]:
        """Of each row, active or not."""
        return [int(count) for count in self.cache.mapped_pages()[:, 0]]

    def needed_blocks(self) -> list[int]:
        """Of each row, for its length."""
        token_bytes = self.cache.geometry.bands[0].token_bytes
        return [-(-int(length) * token_bytes // self.page_size_bytes) for length in self.lengths]

    # Memory

    def reserve(self, size_bytes: int) -> int:
        """Limit the cache to whole KV blocks within so much memory; the pages that this is. A later call never lowers
        it.

        It is a limit and takes no memory: other tenants share the pool, and a step may find it short all the same.
        """
        size_bytes = as_integer(size_bytes, "the memory to reserve")
        if size_bytes < 0:
            raise InvalidRequest(f"{size_bytes} bytes to reserve")
        blocks = min(size_bytes // self.page_size_bytes // self.pages_per_block, self._most_blocks)
        blocks = max(blocks, self._reserved_blocks or 0)
        self.cache.set_budget(blocks * self._pool_pages_per_block)
        self._reserved_blocks = blocks
        return blocks * self.pages_per_block

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
