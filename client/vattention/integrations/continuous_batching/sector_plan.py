"""How large a paged attention cache of transformers is to be, when its tensor is addresses only."""

from __future__ import annotations

from typing import Any

from transformers.generation.continuous_batching.cache import PagedAttentionMemoryHandler

from vatt.errors import InvalidRequest

GIB = 1 << 30
TRASH_SECTORS = 2
# Where nobody said how large the cache is to be, its masks and indices take this part of the free memory at most.
BUFFERS_DIVISOR = 8


class SectorPlan(PagedAttentionMemoryHandler):
    """Stands in for what plans the cache's size by the memory that is free. The tensor takes none; what does are the
    attention masks and read indices, which are as long as the cache."""

    def __init__(self, lendable_bytes: int, **options: Any) -> None:
        """`lendable_bytes`: what may ever be leased. The rest is the base class's."""
        super().__init__(**options)
        self._lendable_bytes = lendable_bytes

    def infer_max_batch_tokens_and_num_sectors(self) -> tuple[int, int]:
        """As configured; without `num_blocks` as many sectors as all that may ever be leased could hold, or fewer where
        the buffers would take too much. Raises InvalidRequest where they do not fit the free memory."""
        batch_tokens = self.cb_config.max_batch_tokens
        if batch_tokens is None:
            batch_tokens = self._default_max_batch_tokens
        sectors = self.num_sectors_from_config()
        if sectors is None:
            sectors = self._default_sectors(batch_tokens)
        if batch_tokens < 1 or sectors < 1:
            raise InvalidRequest(f"not a size of a cache: {batch_tokens} tokens a batch, {sectors} sectors")
        needed_bytes = self._buffer_bytes(batch_tokens, sectors)
        if needed_bytes > self.available_memory:
            raise InvalidRequest(
                f"the masks and indices of a batch would take {needed_bytes / GIB:.1f} GiB, and "
                f"{self.available_memory / GIB:.1f} GiB may be used: choose a smaller max_batch_tokens (now "
                f"{batch_tokens}) or num_blocks (now {sectors * self.bytes_per_sector // self.bytes_per_block}) in "
                "ContinuousBatchingConfig, or flash attention, which needs no mask"
            )
        return batch_tokens, sectors

    def _default_sectors(self, batch_tokens: int) -> int:
        lendable = self._lendable_bytes // self.bytes_per_sector - TRASH_SECTORS
        fixed_bytes = self._buffer_bytes(batch_tokens, 0)
        each_bytes = self._buffer_bytes(batch_tokens, 1) - fixed_bytes
        return max(1, min(lendable, (self.available_memory // BUFFERS_DIVISOR - fixed_bytes) // each_bytes))

    def _buffer_bytes(self, batch_tokens: int, sectors: int) -> int:
        index_bytes = 8 * self.io_multiplier * self.num_groups * (sectors * self.tokens_per_sector + batch_tokens)
        return int(self.attention_mask_bytes(batch_tokens, sectors)) + index_bytes
