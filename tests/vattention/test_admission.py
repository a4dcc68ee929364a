"""Slots for new requests, with memory behind them or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vattention.host_pages import HostPages
from tests.vattention.token_values import SPEC, check, spec_of, write
from vatt.errors import Closed, Draining, InvalidRequest, LimitExceeded, PoolExhausted, VattError, WaitHopeless
from vatt.pages import Extent
from vattention.kvcache import KVCache
from vattention.layout import KVCacheSpec, Layout
from vattention.page_source import LeasePurpose

PAGE = 4096
FUSED = spec_of(Layout.FUSED)  # 576 bytes a token: 100 tokens fill 15 pages
WAIT_S = 10.0


def pages_of(token_count: int) -> int:
    return -(-token_count * FUSED.token_bytes // PAGE)


class QueueingPages(HostPages):
    """Lends as vattd does: an ADMIT that may wait is answered when the test says so and the pages are there."""

    def __init__(self, page_count: int) -> None:
        super().__init__(page_count)
        self.waiting, self.answer_now = threading.Event(), threading.Event()
        self.refusal: VattError | None = None
        self.admitted: list[Extent] = []  # leased to ADMIT
        self.returned: set[int] = set()
        self.changed = threading.Condition()

    def lease(
        self,
        page_count: int,
        *,
        min_page_count: int = 0,
        purpose: LeasePurpose = LeasePurpose.GROW,
        wait_s: float = 0.0,
    ) -> list[Extent]:
        if wait_s:
            self.waiting.set()
            assert self.answer_now.wait(WAIT_S)
            if self.refusal is not None:
                raise self.refusal
            with self.changed:
                assert self.changed.wait_for(lambda: self.pool_pages - self.leased_pages >= page_count, WAIT_S)
        extents = super().lease(page_count, min_page_count=min_page_count, purpose=purpose)
        if purpose is LeasePurpose.ADMIT:
            self.admitted += extents
        return extents

    def give_back(self, extents: Sequence[Extent]) -> None:
        self.returned |= {page_id for extent in extents for page_id in extent.page_ids}
        super().give_back(extents)
        with self.changed:
            self.changed.notify_all()


@contextmanager
def cache_of(page_count: int = 1000, spec: KVCacheSpec = FUSED) -> Iterator[tuple[KVCache, QueueingPages]]:
    host = QueueingPages(page_count)
    with KVCache(host, spec, background=False) as cache:
        cache.keep_finished(1.0)
        yield cache, host
    host.close()
    assert (host.leased_pages, host.mapper.mapped_pages) == (0, 0)


@contextmanager
def admitting(cache: KVCache, token_count: int, wait_s: float = 60.0) -> Iterator[Callable[[], int]]:
    """Admit in another thread; the answer, or its error, is to be had by calling."""
    ends: list[int | BaseException] = []

    def admit() -> None:
        try:
            ends.append(cache.admit_slot(token_count, wait_s=wait_s))
        except BaseException as error:  # noqa: BLE001  raised in the test's thread
            ends.append(error)

    thread = threading.Thread(target=admit)
    thread.start()

    def answer() -> int:
        thread.join(WAIT_S)
        (end,) = ends
        if isinstance(end, BaseException):
            raise end
        return end

    yield answer
    thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("layout", list(Layout), ids=lambda layout: layout.value)
def test_an_admitted_slot_has_memory_for_its_tokens(layout: Layout) -> None:
    with cache_of(spec=spec_of(layout)) as (cache, host):
        slot = cache.admit_slot(300)
        assert cache.capacity(slot) >= cache.length(slot) == 300
        write(cache, slot, 1, 0, 300)
        check(cache, slot, 1, 300)
        other = cache.admit_slot(0)
        assert other != slot
        assert (cache.length(other), cache.length(slot)) == (0, 300)
        assert not host.returned & {page_id for extent in host.admitted for page_id in extent.page_ids}


def test_an_admitted_slot_goes_on_by_steps() -> None:
    with cache_of() as (cache, _):
        slot = cache.admit_slot(100)
        write(cache, slot, 1, 0, 100)
        cache.step([0, 0, 0, 0])  # no step has seen it yet: it stays
        lengths = [0, 0, 0, 0]
        lengths[slot] = 101
        cache.step(lengths)
        check(cache, slot, 1, 100)
        cache.step([0, 0, 0, 0])
        with pytest.raises(InvalidRequest):
            cache.length(slot)


def test_what_an_earlier_request_left_is_used_and_only_the_rest_is_leased() -> None:
    with cache_of() as (cache, host):
        cache.free_slot(cache.admit_slot(200))
        slot = cache.admit_slot(200)
        assert cache.length(slot) == 200
        before = host.admitted[:]
        cache.free_slot(slot)
        assert cache.admit_slot(300) == slot
        leased = sum(extent.page_count for extent in host.admitted[len(before) :])
        assert leased <= pages_of(300) - pages_of(200)


def test_pages_that_other_finished_slots_keep_are_used_where_vattd_has_too_little() -> None:
    with cache_of(page_count=70) as (cache, host):
        slots = [cache.admit_slot(100) for _ in range(4)]  # 60 pages
        for slot in slots:
            cache.free_slot(slot)
        slot = cache.admit_slot(400)  # 57 pages
        assert cache.length(slot) == 400
        write(cache, slot, 1, 0, 400)
        check(cache, slot, 1, 400)
        assert not host.waiting.is_set()


def test_pages_that_another_cache_of_the_session_keeps_are_used_too() -> None:
    with cache_of(page_count=70) as (cache, host), KVCache(host, FUSED, background=False) as other:
        other.keep_finished(1.0)
        other.free_slot(other.admit_slot(400))
        assert cache.length(cache.admit_slot(400)) == 400


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8), st.integers(20, 300))
def test_a_request_is_admitted_wholly_or_changes_nothing(requests: list[int], page_count: int) -> None:
    with cache_of(page_count) as (cache, _):
        held: dict[int, int] = {}
        for token_count in requests:
            if len(held) == SPEC.max_batch_size:
                cache.free_slot(held.popitem()[0])
            try:
                slot = cache.admit_slot(token_count)
            except PoolExhausted:
                assert sum(map(pages_of, held.values())) + pages_of(token_count) > page_count
            else:
                assert slot not in held
                held[slot] = token_count
                write(cache, slot, slot, 0, token_count)
            assert cache._rows.table.used == sorted(held)
            for slot, count in held.items():
                assert cache.length(slot) == count
                check(cache, slot, slot, count)


def test_running_slots_step_on_while_a_request_waits() -> None:
    with cache_of(page_count=100) as (cache, host):
        running = cache.admit_slot(400)  # 57 pages
        with admitting(cache, 400) as answer:
            assert host.waiting.wait(WAIT_S)
            for token_count in range(401, 460):
                cache.grow(running, token_count)
            assert host.leased_pages - host.pages.page_count <= pages_of(460) + pages_of(460) // 2
            cache.free_slot(running)
            cache.release_idle()
            host.answer_now.set()
            slot = answer()
        assert cache._rows.table.used == [slot]
        assert cache.capacity(slot) >= cache.length(slot) == 400


@pytest.mark.parametrize(
    "refusal", [PoolExhausted(9, 1), WaitHopeless(9, 1), LimitExceeded(9, 1), Draining("drained")], ids=repr
)
def test_a_wait_that_ends_in_vain_leaves_everything_as_it_was(refusal: VattError) -> None:
    with cache_of(page_count=100) as (cache, host):
        cache.free_slot(cache.admit_slot(50))
        running = cache.admit_slot(400)
        host.refusal = refusal
        with admitting(cache, 400) as answer:
            assert host.waiting.wait(WAIT_S)
            host.answer_now.set()
            with pytest.raises(type(refusal)) as raised:
                answer()
        assert raised.value is refusal
        assert cache._rows.table.used == [running]
        assert cache.length(running) == 400
        for _ in range(3):
            cache.admit_slot(10)


def test_pages_are_asked_for_again_when_they_have_gone_to_another_slot_meanwhile() -> None:
    """What the slot had from an earlier request went to one that runs, while the rest was waited for."""
    with cache_of(page_count=100) as (cache, host):
        first, second = cache.admit_slot(100), cache.admit_slot(450)  # 15 and 64 pages
        cache.free_slot(first)
        with admitting(cache, 300) as answer:
            assert host.waiting.wait(WAIT_S)
            cache.grow(second, 650)  # 92 pages
            cache.free_slot(second)
            cache.release_idle()
            host.answer_now.set()
            slot = answer()
        assert cache.length(slot) == 300
        write(cache, slot, 1, 0, 300)
        check(cache, slot, 1, 300)


def test_no_request_is_admitted_where_an_operator_wants_none_whatever_is_at_hand() -> None:
    with cache_of() as (cache, host):
        cache.free_slot(cache.admit_slot(100))
        host.is_draining = True
        with pytest.raises(Draining):
            cache.admit_slot(50)
        assert cache._rows.table.used == []


def test_a_request_past_the_budget_of_the_cache_is_refused_at_once() -> None:
    with cache_of() as (cache, host):
        cache.set_budget(30)
        cache.free_slot(cache.admit_slot(100))
        running = cache.admit_slot(90)
        with pytest.raises(PoolExhausted):
            cache.admit_slot(200, wait_s=60.0)
        assert not host.waiting.is_set()
        assert cache._rows.table.used == [running]
        cache.free_slot(running)
        cache.admit_slot(200)  # what was kept makes room


def test_a_request_that_makes_no_sense_is_refused() -> None:
    with cache_of() as (cache, _):
        for token_count, wait_s in ((-1, 0.0), (1001, 0.0), (1.5, 0.0), (1, -1.0), (1, float("nan")), (1, "1")):
            with pytest.raises(InvalidRequest):
                cache.admit_slot(token_count, wait_s=wait_s)  # type: ignore[arg-type]
        for _ in range(SPEC.max_batch_size):
            cache.admit_slot(1)
        with pytest.raises(InvalidRequest, match="in use"):
            cache.admit_slot(1, wait_s=60.0)


def test_a_slot_that_was_ended_while_its_request_waited_is_not_handed_out() -> None:
    with cache_of(page_count=100) as (cache, host):
        cache.admit_slot(400)
        with admitting(cache, 400) as answer:
            assert host.waiting.wait(WAIT_S)
            cache.release()
            host.answer_now.set()
            with pytest.raises(InvalidRequest, match="ended"):
                answer()
        assert cache._rows.table.used == []
        assert cache.length(cache.admit_slot(400)) == 400


def test_a_cache_may_be_closed_while_a_request_waits() -> None:
    host = QueueingPages(100)
    cache = KVCache(host, FUSED)
    cache.admit_slot(400)
    with admitting(cache, 400) as answer:
        assert host.waiting.wait(WAIT_S)
        cache.close()
        host.answer_now.set()
        with pytest.raises(Closed):
            answer()
    host.close()
    assert host.leased_pages == 0


def test_a_row_that_shared_its_pages_is_emptied_before_a_request_is_admitted_to_it() -> None:
    with cache_of(spec=spec_of(Layout.FUSED, max_batch_size=2)) as (cache, _):
        first = cache.admit_slot(300)
        write(cache, first, 1, 0, 300)
        cache.free_slot(cache.fork_slot(first))
        second = cache.admit_slot(300)
        write(cache, second, 2, 0, 300)
        check(cache, first, 1, 300)
