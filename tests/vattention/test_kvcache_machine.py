from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.vattention.host_pages import page_ids_of, working_host
from tests.vattention.token_values import SPEC, check, spec_of, write
from vatt.errors import PoolExhausted
from vattention.kvcache import KVCache
from vattention.layout import Layout

PAGE = 4096
WHICH = st.integers(0, len(Layout) - 1)
POOL_PAGES = 300
# Who wrote which of a slot's tokens: (seed, start, end), from the first token on without a hole.
Pieces = list[tuple[int, int, int]]


def length_of(pieces: Pieces) -> int:
    return pieces[-1][2] if pieces else 0


def first_tokens(pieces: Pieces, token_count: int) -> Pieces:
    return [(seed, start, min(end, token_count)) for seed, start, end in pieces if start < token_count]


class KVCacheMachine(RuleBasedStateMachine):
    """Random lives of slots in caches of every layout that share one pool's pages.

    Every token that was written is read back, every page is accounted for, nothing is unmapped while work may use it,
    and nothing leaks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.host, self.work = working_host(POOL_PAGES)
        self.caches = [
            KVCache(self.host, spec_of(layout), fence=self.work.fence, background=False) for layout in Layout
        ]
        self.budgets: dict[int, int] = {}
        self.slots: dict[tuple[int, int], Pieces] = {}  # by cache and slot
        self.stepped: set[tuple[int, int]] = set()  # slots that a step has given a length
        self.seed = 0

    def some_slot(self, data: st.DataObject) -> tuple[int, int]:
        return data.draw(st.sampled_from(sorted(self.slots)))

    def is_full(self, which: int) -> bool:
        return sum(cache == which for cache, _ in self.slots) == SPEC.max_batch_size

    def extend(self, key: tuple[int, int], token_count: int) -> None:
        """Fill a slot up to its new length, as a model would."""
        had = length_of(self.slots[key])
        assert self.caches[key[0]].capacity(key[1]) >= token_count
        if token_count > had:
            self.seed += 1
            write(self.caches[key[0]], key[1], self.seed, had, token_count)
            self.work.use(self.caches[key[0]], key[1], token_count)
            self.slots[key].append((self.seed, had, token_count))

    @rule(which=WHICH, announced=st.none() | st.integers(0, 1000))
    def acquire(self, which: int, announced: int | None) -> None:
        if not self.is_full(which):
            slot = self.caches[which].acquire_slot(announced)
            assert (which, slot) not in self.slots
            self.slots[which, slot] = []
            self.stepped.discard((which, slot))

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), count=st.integers(1, 1000))
    def grow(self, data: st.DataObject, count: int) -> None:
        which, slot = key = self.some_slot(data)
        try:
            self.caches[which].grow(slot, count)
        except PoolExhausted:
            return
        self.extend(key, count)

    @rule(which=WHICH, data=st.data())
    def step(self, which: int, data: st.DataObject) -> None:
        """Some slots end, begin, are cut back, or grow by a token or many."""
        lengths = []
        for slot in range(SPEC.max_batch_size):
            had = length_of(self.slots.get((which, slot), []))
            lengths.append(data.draw(st.sampled_from([0, had, min(1000, had + 1)]) | st.integers(0, 600)))
        zero_ends = data.draw(st.booleans())
        try:
            self.caches[which].step(lengths, zero_ends=zero_ends)
        except PoolExhausted:
            return
        for slot, count in enumerate(lengths):
            if count == 0:
                if zero_ends or (which, slot) in self.stepped:
                    self.slots.pop((which, slot), None)
                continue
            self.stepped.add((which, slot))
            self.slots[which, slot] = first_tokens(self.slots.get((which, slot), []), count)
            self.extend((which, slot), count)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        which, source = key = self.some_slot(data)
        if self.is_full(which):
            return
        count = data.draw(st.integers(0, length_of(self.slots[key])) | st.just(length_of(self.slots[key])))
        try:
            slot = self.caches[which].fork_slot(source, count)
        except PoolExhausted:
            return
        assert (which, slot) not in self.slots
        self.slots[which, slot] = first_tokens(self.slots[key], count)
        self.stepped.discard((which, slot))
        self.work.use(self.caches[which], slot, count)

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), keep_ahead=st.booleans())
    def shrink(self, data: st.DataObject, keep_ahead: bool) -> None:
        which, slot = key = self.some_slot(data)
        count = data.draw(st.integers(0, length_of(self.slots[key])))
        try:
            self.caches[which].shrink(slot, count, keep_ahead=keep_ahead)
        except PoolExhausted:  # for a page of its own where it ends
            return
        self.slots[key] = first_tokens(self.slots[key], count)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        which, slot = key = self.some_slot(data)
        self.caches[which].free_slot(slot)
        del self.slots[key]

    @rule(which=WHICH)
    def release_idle(self, which: int) -> None:
        cache = self.caches[which]
        before = self.host.mapper.mapped_pages
        freed = cache.release_idle()
        assert before - self.host.mapper.mapped_pages == freed
        assert cache.stats().kept_bytes == 0

    @rule(which=WHICH, pages=st.none() | st.integers(0, POOL_PAGES))
    def set_budget(self, which: int, pages: int | None) -> None:
        """A budget below what is mapped holds for growth; another tenant's pages are not ours to take away."""
        self.caches[which].set_budget(pages)
        self.budgets.pop(which, None)
        if pages is not None:
            self.budgets[which] = max(pages, self.caches[which].stats().mapped_bytes // PAGE)

    @rule(which=WHICH, fraction=st.floats(0, 1))
    def keep_finished(self, which: int, fraction: float) -> None:
        self.caches[which].keep_finished(fraction)

    @rule(which=WHICH)
    def settle(self, which: int) -> None:
        self.caches[which].settle()

    @rule()
    def finish_work(self) -> None:
        self.work.finish()

    @invariant()
    def tokens_are_as_written(self) -> None:
        for (which, slot), pieces in self.slots.items():
            cache = self.caches[which]
            assert cache.length(slot) == length_of(pieces) <= cache.capacity(slot)
            for seed, start, end in pieces:
                check(cache, slot, seed, end, start=start)

    @invariant()
    def every_mapped_page_is_counted_once(self) -> None:
        mapped = 0
        for cache in self.caches:
            stats = cache.stats()
            behind = {page for slot in range(SPEC.max_batch_size) for page in page_ids_of(cache, slot)}
            assert stats.mapped_bytes == len(behind) * PAGE
            assert stats.mapped_pages_total - stats.unmapped_pages_total == len(behind)
            assert stats.token_bytes <= stats.mapped_bytes
            mapped += len(behind)
        assert mapped == self.host.mapper.mapped_pages

    @invariant()
    def no_budget_is_passed(self) -> None:
        for which, pages in self.budgets.items():
            assert self.caches[which].stats().mapped_bytes <= pages * PAGE

    def teardown(self) -> None:
        self.host.close()
        assert self.host.mapper.mapped_pages == 0
        assert self.host.leased_pages == 0


TestKVCacheMachine: Any = KVCacheMachine.TestCase
TestKVCacheMachine.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
