from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vatt.errors import Closed, InvalidRequest, PoolExhausted
from vatt.pages import Extent, FreeExtents, page_count_of
from vatt.usage import Usage
from vattention.page_cache import RECLAIM_REST_S, PageCache
from vattention.page_source import LeasePurpose

WAIT_S = 10.0


class FakeSource:
    """A pool of page ids; `changed` is notified at every call, so that tests wait without sleeping."""

    def __init__(self, page_count: int) -> None:
        self.free = FreeExtents([Extent(0, page_count)])
        self.page_count = page_count
        self.leases: list[int] = []
        self.reports: list[Usage] = []
        self.failure: Exception | None = None
        self.failures = 0
        self.changed = threading.Condition()

    def lease(
        self,
        page_count: int,
        *,
        min_page_count: int = 0,
        purpose: LeasePurpose = LeasePurpose.GROW,
        wait_s: float = 0.0,
    ) -> list[Extent]:
        assert wait_s == 0
        is_ahead = purpose is LeasePurpose.AHEAD
        assert is_ahead is (threading.current_thread().name == "vattention-pages"), "only a refill is ahead of need"
        with self.changed:
            self.changed.notify_all()
            if self.failure is not None:
                self.failures += 1
                raise self.failure
            if self.free.page_count < (min_page_count or page_count):
                raise PoolExhausted(page_count, self.free.page_count)
            self.leases.append(page_count)
            return self.free.take(page_count)

    def give_back(self, extents: Sequence[Extent]) -> None:
        with self.changed:
            for extent in extents:
                self.free.give_back(extent)
            self.changed.notify_all()

    def report_usage(self, usage: Usage) -> None:
        with self.changed:
            self.reports.append(usage)
            self.changed.notify_all()


@contextmanager
def cache_of(source: FakeSource, usage: Callable[[], Usage] = Usage) -> Iterator[PageCache]:
    cache = PageCache(source, usage)
    try:
        yield cache
    finally:
        cache.close()


def test_every_run_is_dealt_in_one_piece_where_there_is_one() -> None:
    with cache_of(FakeSource(100)) as cache:
        dealt = cache.take([1, 8, 3])
        assert [[extent.page_count for extent in extents] for extents in dealt] == [[1], [8], [3]]


def test_a_take_that_is_refused_keeps_what_was_there_and_says_how_much_is_missing() -> None:
    source = FakeSource(10)
    with cache_of(source) as cache:
        held = cache.take([6])
        cache.put(held[0])
        with pytest.raises(PoolExhausted) as refused:
            cache.take([11])
        assert refused.value.requested_pages == 11 - 6
        assert cache.page_count + source.free.page_count == 10
        assert page_count_of(extent for extents in cache.take([6, 4]) for extent in extents) == 10


def test_pages_that_lie_here_are_dealt_without_asking_vattd() -> None:
    source = FakeSource(100)
    with cache_of(source) as cache:
        cache.set_growth_step(cache, 50)  # else the background gives them back
        cache.put(cache.take([50])[0])
        source.failure = AssertionError("asked")
        cache.take([20, 20])


def test_the_background_refills_to_what_was_taken_lately_and_gives_all_back_when_nobody_grows() -> None:
    source = FakeSource(100)
    with cache_of(source) as cache:
        cache.set_growth_step(cache, 8)
        taken = cache.take([4, 4])
        with source.changed:
            assert source.changed.wait_for(lambda: source.free.page_count < 100 - 8, WAIT_S)
        for extents in taken:
            cache.put(extents)
        cache.set_growth_step(cache, 0)
        with source.changed:
            assert source.changed.wait_for(lambda: source.free.page_count == 100, WAIT_S)


def test_the_background_reports_the_usage_when_any_of_it_changes_and_only_then() -> None:
    source, usages = FakeSource(100), [Usage()]
    with cache_of(source, lambda: usages[-1]) as cache:
        cache.set_growth_step(cache, 4)
        taken = cache.take([4])
        for usage in (Usage(4), Usage(4, token_bytes=5), Usage(4, token_bytes=5, paged16_bytes=64)):
            usages.append(usage)
            with source.changed:
                assert source.changed.wait_for(lambda: source.reports == usages[1:], WAIT_S), source.reports
        usages.append(Usage())
        cache.put(taken[0])
        with source.changed:
            assert source.changed.wait_for(lambda: source.reports == usages[1:], WAIT_S), source.reports


def test_tokens_that_need_no_page_are_reported_though_nobody_grows() -> None:
    source, usages = FakeSource(100), [Usage()]
    with cache_of(source, lambda: usages[-1]) as cache:
        [taken] = cache.take([4])
        for token_bytes in (100, 101):
            usages.append(Usage(4, token_bytes=token_bytes))
            with source.changed:
                assert source.changed.wait_for(lambda: source.reports[-1:] == usages[-1:], WAIT_S)
        cache.put(taken)


def test_the_usage_may_wait_for_a_lock_that_is_held_during_a_take() -> None:
    source, lock, asked = FakeSource(100), threading.Lock(), threading.Event()

    def usage() -> Usage:
        asked.set()
        with lock:
            return Usage()

    lock.acquire()
    with cache_of(source, usage) as cache:
        assert asked.wait(WAIT_S)
        thread = threading.Thread(target=lambda: cache.put(cache.take([4])[0]), daemon=True)
        thread.start()
        thread.join(WAIT_S)
        lock.release()
        assert not thread.is_alive()


def test_a_bug_in_a_refill_does_not_end_the_background() -> None:
    source = FakeSource(100)
    with cache_of(source) as cache:
        source.failure = RuntimeError("a bug")
        cache.set_growth_step(cache, 8)
        cache.put(source.free.take(8))
        cache.take([8])
        with source.changed:
            assert source.changed.wait_for(lambda: source.failures > 0, WAIT_S)
            source.failure = None
            assert source.changed.wait_for(lambda: bool(source.leases), WAIT_S)


def test_closing_gives_everything_back_and_later_puts_go_straight_back() -> None:
    source = FakeSource(10)
    with cache_of(source) as cache:
        first, second = cache.take([3, 4])
        cache.put(first)
        cache.close()
        assert source.free.page_count == 6
        cache.put(second)
        assert source.free.page_count == 10
        with pytest.raises(Closed):
            cache.take([1])


def test_a_run_of_no_pages_is_refused() -> None:
    with cache_of(FakeSource(1)) as cache, pytest.raises(InvalidRequest):
        cache.take([1, 0])


def test_what_was_given_up_is_not_fetched_again_until_the_rest_is_over_though_a_take_is_served() -> None:
    source, now_s = FakeSource(100), [100.0]
    cache = PageCache(source, Usage, clock=lambda: now_s[0])
    cache.set_growth_step(cache, 8)
    taken = cache.take([8])
    with source.changed:
        assert source.changed.wait_for(lambda: source.free.page_count < 100 - 8, WAIT_S)
    with cache._leasing:  # no refill is under way
        source.give_back(cache.give_up(100))
        assert cache.page_count == 0
    leases = len(source.leases)
    for _ in range(3):
        taken += cache.take([5])
        cache.put(taken.pop())  # kept by nobody: the background has had its turn when it is gone
        with source.changed:
            assert source.changed.wait_for(lambda: source.free.page_count == 100 - 8, WAIT_S)
    assert source.leases[leases:] == [5] * 3
    now_s[0] += RECLAIM_REST_S
    taken += cache.take([5])
    with source.changed:
        assert source.changed.wait_for(lambda: source.free.page_count < 100 - 8 - 5, WAIT_S)
    cache.close()


def test_no_more_is_given_up_than_lies_here() -> None:
    source = FakeSource(100)
    with cache_of(source) as cache:
        assert cache.give_up(5) == []
        cache.set_growth_step(cache, 50)
        cache.put(cache.take([30])[0])
        given_up = cache.give_up(7)
        assert page_count_of(given_up) == 7
        assert page_count_of(cache.give_up(1000)) <= 23
        source.give_back(given_up)


def test_spare_pages_follow_what_the_tenant_may_have_while_the_engine_runs() -> None:
    source, spare, now_s = FakeSource(100), [40], 100.0
    cache = PageCache(source, Usage, clock=lambda: now_s, spare_pages=lambda: spare[0])
    cache.put(cache.take([40])[0])
    spare[0] = 10
    with cache._changed:
        cache._changed.notify_all()
    with source.changed:
        assert source.changed.wait_for(lambda: source.free.page_count >= 90, WAIT_S)
    cache.close()


class PageCacheMachine(RuleBasedStateMachine):
    """Random takes and puts beside the running background; every page stays in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.source = FakeSource(64)
        self.cache = PageCache(self.source, Usage)
        self.cache.set_growth_step(self, 8)
        self.held: list[list[Extent]] = []

    @rule(runs=st.lists(st.integers(1, 9), min_size=1, max_size=6))
    def take(self, runs: list[int]) -> None:
        room = 64 - sum(page_count_of(extents) for extents in self.held)
        if sum(runs) > room:
            with pytest.raises(PoolExhausted):
                self.cache.take(runs)
            return
        dealt = self.cache.take(runs)
        assert [page_count_of(extents) for extents in dealt] == runs
        self.held += dealt

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        self.cache.put(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @invariant()
    def no_page_is_held_twice(self) -> None:
        pages = [page for extents in self.held for extent in extents for page in extent.page_ids]
        assert len(pages) == len(set(pages))

    def teardown(self) -> None:
        self.cache.close()
        assert self.source.free.page_count + sum(page_count_of(extents) for extents in self.held) == 64


TestPageCacheMachine = PageCacheMachine.TestCase
TestPageCacheMachine.settings = settings(max_examples=40, deadline=None)
