"""vattention as the replay's memory: the real library on a private vattd, its pages scaled down, its clock virtual."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from vatt.errors import LimitExceeded, OutOfMemory, PoolExhausted
from vattctl.replay.batching import Counts, OutOfBlocks, VirtualClock
from vattctl.replay.models import Double
from vattention import KVCache, KVCacheSpec, Layout, Session
from vattention.embedded import EmbeddedDaemon


def double_spec(double: Double, layout: Layout, slot_count: int, context_length: int) -> KVCacheSpec:
    """The double's cache: as many layers as the model's, and keys smaller by the factor, to the byte."""
    size_bytes = double.small_key_bytes
    dtype = torch.float16 if size_bytes % 2 == 0 else torch.float8_e4m3fn
    return KVCacheSpec(
        num_layers=double.model.num_layers,
        num_kv_heads=1,
        head_size=size_bytes // dtype.itemsize,
        dtype=dtype,
        max_batch_size=slot_count,
        max_context_length=context_length,
        layout=layout,
    )


@dataclass(frozen=True, slots=True)
class Held:
    """What the cache says it holds, in pages."""

    needed_pages: int
    running_pages: int  # behind slots in use
    kept_pages: int  # behind slots that are not
    kernel_runs: int


class PagedByVattention:
    """A KV cache whose background work is done when `rest` says. Figures are the cache's own counters."""

    def __init__(self, cache: KVCache, budget_pages: int, clock: VirtualClock) -> None:
        self._cache = cache
        self._page_bytes = cache.geometry.page_size_bytes
        self.clock = clock
        self.budget_blocks = budget_pages
        self.slot_count = cache.spec.max_batch_size
        self.grows = True
        self.needed_total = 0  # pages of all requests, each time one was admitted, whether found mapped or not
        self.unmapped_by_requests = 0  # pages unmapped within a step, which waited for it
        self._needed = 0
        self._stats = cache.stats()

    def blocks(self, lengths: Counts) -> int:
        return self._cache.needed_pages(lengths)

    def can_hold(self, length_tokens: int) -> bool:
        return self._needed_alone(0, length_tokens) <= self.budget_blocks

    def admit(self, prompt_tokens: int) -> int:
        return self._cache.acquire_slot(prompt_tokens)

    def hold(self, lengths: Counts) -> None:
        try:
            self._cache.step(lengths)
        except (PoolExhausted, LimitExceeded, OutOfMemory) as error:
            raise OutOfBlocks from error
        needed = self.blocks(lengths)
        self.needed_total += needed - self._needed
        self._needed = needed

    def free(self, slot: int, length: int) -> None:
        self._needed -= self._needed_alone(slot, length)
        self._cache.free_slot(slot)

    def rest(self) -> None:
        before = self._stats
        self._stats = self._cache.stats()
        self.unmapped_by_requests += self._stats.unmapped_pages_total - before.unmapped_pages_total
        self._cache.settle()
        self._stats = self._cache.stats()

    def held(self) -> Held:
        """After the latest rest."""
        kept = self._stats.kept_bytes // self._page_bytes
        return Held(
            needed_pages=self._needed,
            running_pages=self._stats.mapped_bytes // self._page_bytes - kept,
            kept_pages=kept,
            kernel_runs=self._stats.kernel_run_count,
        )

    @property
    def mapped_total(self) -> int:
        return self._stats.mapped_pages_total

    @property
    def unmapped_total(self) -> int:
        return self._stats.unmapped_pages_total

    def _needed_alone(self, slot: int, length: int) -> int:
        lengths = np.zeros(self.slot_count, dtype=np.int64)
        lengths[slot] = length
        return self.blocks(lengths)


@contextmanager
def vattention_memory(
    double: Double,
    layout: Layout,
    budget_pages: int,
    slot_count: int,
    context_length: int,
) -> Iterator[PagedByVattention]:
    """A cache on a vattd that has just the budget, and ends with the block."""
    pool = str(budget_pages * double.small_page_bytes)
    options = ("--pool-max", pool, "--pool-min", pool, "--headroom", "0", "--page-size", str(double.small_page_bytes))
    clock = VirtualClock()
    spec = double_spec(double, layout, slot_count, context_length)
    with EmbeddedDaemon("host", options) as daemon:
        with Session.connect("replay", device="host", socket_dir=daemon.sockets.directory.parent) as session:
            with KVCache(session, spec, background=False, clock=clock) as cache:
                yield PagedByVattention(cache, budget_pages, clock)
