from __future__ import annotations

import dataclasses

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.vattention.host_pages import HostPages
from tests.vattention.token_values import SPEC, check, write
from vatt.errors import PoolExhausted
from vattention.kvcache import KVCache
from vattention.layout import Layout


class KVCacheMachine(RuleBasedStateMachine):
    """Random lives of slots; every token that was written is read back, and nothing leaks."""

    def __init__(self) -> None:
        super().__init__()
        self.host = HostPages(page_count=100)
        self.caches = [KVCache(self.host, dataclasses.replace(SPEC, layout=layout)) for layout in Layout]
        self.slots: dict[tuple[int, int], tuple[int, int]] = {}  # (cache, slot): (seed, tokens)
        self.seed = 0

    @rule(which=st.integers(0, 1))
    def acquire(self, which: int) -> None:
        if sum(cache == which for cache, _ in self.slots) == SPEC.max_batch_size:
            return
        self.seed += 1
        self.slots[which, self.caches[which].acquire_slot()] = (self.seed, 0)

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), count=st.integers(1, 1000))
    def grow(self, data: st.DataObject, count: int) -> None:
        which, slot = key = data.draw(st.sampled_from(sorted(self.slots)))
        seed, had = self.slots[key]
        before = self.host.mapper.mapped_pages
        try:
            self.caches[which].grow(slot, count)
        except PoolExhausted:
            assert self.host.mapper.mapped_pages == before
            return
        if count > had:
            write(self.caches[which], slot, seed, had, count)
            self.slots[key] = (seed, count)

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), keep_ahead=st.booleans())
    def shrink(self, data: st.DataObject, keep_ahead: bool) -> None:
        which, slot = key = data.draw(st.sampled_from(sorted(self.slots)))
        seed, had = self.slots[key]
        count = data.draw(st.integers(0, had))
        self.caches[which].shrink(slot, count, keep_ahead=keep_ahead)
        self.slots[key] = (seed, count)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        which, slot = key = data.draw(st.sampled_from(sorted(self.slots)))
        self.caches[which].free_slot(slot)
        del self.slots[key]

    @invariant()
    def tokens_are_as_written(self) -> None:
        for (which, slot), (seed, count) in self.slots.items():
            assert self.caches[which].length(slot) == count
            check(self.caches[which], slot, seed, count)

    @invariant()
    def every_mapped_page_is_accounted(self) -> None:
        mapped = sum(cache.stats().mapped_bytes for cache in self.caches)
        assert mapped == self.host.mapper.mapped_pages * 4096

    def teardown(self) -> None:
        for cache in self.caches:
            cache.close()
        self.host.pages.close()
        assert self.host.leased_pages == 0
        self.host.close()


TestKVCacheMachine = KVCacheMachine.TestCase
TestKVCacheMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
