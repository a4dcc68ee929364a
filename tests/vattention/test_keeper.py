"""The background: pages are there before the step that needs them, and those that nobody needs go in time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vattention.host_pages import HostPages, Work, WorkProof, working_host
from tests.vattention.token_values import check, spec_of, write
from vatt.errors import PoolExhausted
from vattention.device_fence import Fence
from vattention.keeper import CHUNK_PAGES, PROOF_PATIENCE_S, KeepPolicy
from vattention.kvcache import KVCache
from vattention.layout import KVCacheSpec, Layout
from vattention.lookahead import MAPPING_SHARE, Pace

PAGE = 4096
FUSED = spec_of(Layout.FUSED)  # 576 bytes a token: 100 tokens fill 15 pages
KEEP_S = KeepPolicy().keep_s


def pages_of(token_count: int) -> int:
    return -(-token_count * FUSED.token_bytes // PAGE)


@contextmanager
def quiet_cache(
    spec: KVCacheSpec = FUSED, page_count: int = 1000, fence: Callable[[Work], Fence] | None = None
) -> Iterator[tuple[KVCache, Work]]:
    """A cache whose background does what it is told, over a device whose work is over when it is told."""
    host, work = working_host(page_count)
    with KVCache(host, spec, fence=fence(work) if fence else work.fence, background=False) as cache:
        yield cache, work
        work.finish()
    assert host.mapper.mapped_pages == 0
    host.close()
    assert host.leased_pages == 0


def tend(cache: KVCache, now_s: float) -> float | None:
    """Rounds of upkeep at one moment, until there is nothing to do but rest."""
    rest_s: float | None = 0
    while rest_s == 0:
        rest_s = cache._keeper.tend(now_s)
    return rest_s


def kept_pages(cache: KVCache) -> int:
    return cache.stats().kept_bytes // PAGE


# Mapping ahead


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(Layout),
    st.lists(st.integers(0, 900), min_size=4, max_size=4).filter(any),
    st.sampled_from([None, 2 * PAGE]),
)
def test_a_step_by_one_token_maps_nothing_once_the_background_has_settled(
    layout: Layout, start: list[int], page_size_bytes: int | None
) -> None:
    host = HostPages()
    lengths = np.array(start)
    with KVCache(host, spec_of(layout, page_size_bytes=page_size_bytes), background=False) as cache:
        cache.step(lengths)
        for _ in range(60):
            cache.settle()
            lengths = np.where(lengths > 0, lengths + 1, 0)
            mapped = cache.stats().mapped_pages_total
            cache.step(lengths)
            assert cache.stats().mapped_pages_total == mapped
    host.close()


MANY = KVCacheSpec(2, 1, 32, torch.float16, 256, 400, Layout.MEGACACHE)  # 32 tokens a page


def test_slots_that_cross_a_page_in_the_same_step_find_theirs_mapped() -> None:
    host = HostPages(page_count=256 * 2 * 8)
    with KVCache(host, MANY) as cache:
        lengths = np.full(256, 20)
        cache.step(lengths)
        for _ in range(80):
            assert cache.settle(60)
            lengths += 1
            mapped = cache.stats().mapped_pages_total
            cache.step(lengths)
            assert cache.stats().mapped_pages_total == mapped
    host.close()


class FixedPace(Pace):
    """So many pages of mapping fit between two steps."""

    def __init__(self, pages_per_step: int) -> None:
        super().__init__()
        self.step_s, self.page_s = 1.0, MAPPING_SHARE / pages_per_step

    def note_mapping(self, page_count: int, duration_s: float) -> None:
        pass

    def note_step(self, now_s: float) -> None:
        pass


def test_one_chunk_between_two_steps_is_enough_for_512_pages_that_fall_due_in_one() -> None:
    """Begun 8 steps before, and no sooner than that: a page mapped early is a page idle."""
    host = HostPages(page_count=256 * 2 * 8)
    with KVCache(host, MANY, background=False) as cache:
        cache._rows.pace = FixedPace(CHUNK_PAGES)
        lengths = np.full(256, 33)
        cache.step(lengths)
        for _ in range(90):
            mapped = cache.stats().mapped_pages_total
            cache._keeper.tend(0.0)
            in_background = cache.stats().mapped_pages_total - mapped
            assert in_background <= CHUNK_PAGES
            assert not in_background or -lengths[0] % 32 <= 8 + 2
            lengths += 1
            cache.step(lengths)
            assert cache.stats().mapped_pages_total == mapped + in_background, f"at {lengths[0]} tokens"
    host.close()


def test_what_is_due_next_is_mapped_first() -> None:
    with quiet_cache() as (cache, _):
        cache.step([63, 64, 50, 0])  # room for one more token, for none, for six
        cache._keeper.tend(0.0)
        assert cache._rows.table.mapped[:, 0].tolist() == [9 + 1, 9 + 1, 8, 0]
        rows, _, is_due = cache._keeper._chunk(
            np.array([1, 0]), np.array([[9], [9]]), np.array([[1], [1]]), is_due=True
        )
        assert (rows.tolist(), is_due) == ([1, 0], True)


def test_vattd_is_left_alone_for_a_while_after_it_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with quiet_cache(page_count=16) as (cache, _):
        cache.step([112, 0, 0, 0])  # all 16 pages; the next is due in two steps
        tries: list[bool] = []
        extend_ahead = cache._rows.extend_ahead

        def counted(*args: Any, **kwargs: Any) -> bool:
            tries.append(extend_ahead(*args, **kwargs))
            return tries[-1]

        monkeypatch.setattr(cache._rows, "extend_ahead", counted)
        rest_s = tend(cache, 50.0)
        assert rest_s is not None
        assert rest_s > 0
        tend(cache, 50.01)
        assert tries == [False]
        tend(cache, 51.0)
        assert tries == [False, False]
        assert cache.length(0) == 112


def test_kept_pages_go_for_those_that_the_next_step_needs() -> None:
    with quiet_cache(page_count=100) as (cache, _):
        cache.keep_finished(1.0)
        cache.step([350, 300, 0, 0])  # 50 and 43 pages
        now_s = time.monotonic()
        cache.step([0, 300, 0, 0])
        for count in range(301, 480):
            now_s += 0.15
            tend(cache, now_s)
            mapped = cache.stats().mapped_pages_total
            cache.step([0, count, 0, 0])
            assert cache.stats().mapped_pages_total == mapped
        assert kept_pages(cache) < 50


# Letting go


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 1000), min_size=4, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.floats(0, 1),
)
def test_kept_pages_stay_below_their_part_of_the_pool(lengths: list[int], leave: list[bool], fraction: float) -> None:
    with quiet_cache(page_count=600) as (cache, work):
        cache.keep_finished(fraction)
        cache.step(lengths)
        for slot in range(4):
            write(cache, slot, slot, 0, lengths[slot])
        after = [0 if leaves else length for length, leaves in zip(lengths, leave, strict=True)]
        cache.step(after)
        work.finish()
        cache.settle()
        finished = sum(pages_of(length) for length, leaves in zip(lengths, leave, strict=True) if leaves)
        assert kept_pages(cache) <= int(600 * fraction)
        assert kept_pages(cache) >= min(finished, int(600 * fraction)) - 1, "and no more goes than must"
        for slot, length in enumerate(after):
            if length:
                check(cache, slot, slot, length)


def test_the_largest_idle_rows_go_first() -> None:
    with quiet_cache() as (cache, work):
        cache.step([100, 900, 300, 5])  # 15, 127 and 43 pages that will be kept
        cache.step([0, 0, 0, 5])
        work.finish()
        cache.keep_finished(0.06)
        cache.settle()
        assert cache._rows.table.mapped[:, 0].tolist()[:3] == [15, 2, 43]
        cache.keep_finished(0.02)
        cache.settle()
        assert cache._rows.table.mapped[:, 0].tolist()[:3] == [15, 2, 3]


def test_an_idle_engine_keeps_nothing() -> None:
    with quiet_cache() as (cache, work):
        cache.keep_finished(1.0)
        cache.step([100, 200, 0, 0])
        left_s = time.monotonic()
        cache.step([0, 200, 0, 0])
        work.finish()
        rest_s = tend(cache, left_s)
        assert rest_s is not None
        assert 0 < rest_s <= KEEP_S + 1, "it comes back when the pages have become too old"
        tend(cache, left_s + KEEP_S - 1)
        assert kept_pages(cache) == pages_of(100)
        assert tend(cache, left_s + KEEP_S + 10) is None
        assert kept_pages(cache) == 0
        assert cache.length(1) == 200


def test_settling_on_a_clock_of_the_callers_waits_for_nothing_that_is_due_later() -> None:
    host, work = working_host()
    now_s = 1000.0
    with KVCache(host, FUSED, fence=work.fence, clock=lambda: now_s, background=False) as cache:
        cache.keep_finished(1.0)
        cache.step([100, 0, 0, 0])
        cache.step([0, 0, 0, 0])
        work.finish()
        now_s += KEEP_S - 0.002  # in two thousandths of a second the pages are too old, and that never comes
        assert cache.settle(timeout_s=5)
        assert kept_pages(cache) == pages_of(100)
    host.close()


def test_kept_pages_become_too_old_although_others_cannot_be_had() -> None:
    """A request that has announced more than there is waits for pages all the time; the rest goes on all the same."""
    with quiet_cache(page_count=100) as (cache, work):
        cache.keep_finished(1.0)
        cache.step([200, 300, 50, 0])
        left_s = time.monotonic()
        cache.step([0, 0, 50, 0])
        work.finish()
        assert cache.acquire_slot(900) == 1
        now_s = left_s
        while now_s < left_s + KEEP_S + 10:
            now_s += tend(cache, now_s) or KEEP_S
        assert kept_pages(cache) == 0


def test_pages_past_what_a_running_slot_will_soon_fill_go_too() -> None:
    """A short request took over the row of a long one."""
    with quiet_cache() as (cache, work):
        cache.step([900, 0, 0, 0])
        write(cache, 0, 1, 0, 900)
        cache.step([0, 0, 0, 0])
        work.finish()
        assert cache.acquire_slot(60) == 0
        cache.grow(0, 60)
        write(cache, 0, 2, 0, 60)
        cache.settle()
        most = pages_of(60) + 2 + int(KeepPolicy().surplus_fraction * 1000)
        assert pages_of(60) <= cache.stats().mapped_bytes // PAGE <= most
        check(cache, 0, 2, 60)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_pages_that_tokens_fill_are_never_let_go(data: st.DataObject) -> None:
    lengths = np.zeros(4, dtype=np.int64)
    with quiet_cache(spec_of(data.draw(st.sampled_from(Layout))), page_count=700) as (cache, work):
        cache.keep_finished(data.draw(st.sampled_from([0.0, 0.02, 0.3])))
        now_s = time.monotonic()
        for _ in range(8):
            wanted = np.array(data.draw(st.lists(st.just(0) | st.integers(0, 400), min_size=4, max_size=4)))
            cache.step(wanted)
            for slot in range(4):
                had = lengths[slot]
                if wanted[slot] > had:
                    write(cache, slot, slot, had, int(wanted[slot]))
                work.use(cache, slot, int(wanted[slot]))
            lengths = wanted
            if data.draw(st.booleans()):
                work.finish()
            now_s += data.draw(st.sampled_from([0.0, 0.001, PROOF_PATIENCE_S + 0.1, KEEP_S]))
            for _ in range(data.draw(st.integers(0, 20))):
                cache._keeper.tend(now_s)
            for slot in range(4):
                if lengths[slot]:
                    assert cache.capacity(slot) >= lengths[slot]
                    check(cache, slot, slot, int(lengths[slot]))
        work.finish()


# Proofs


def leave_two_rows(cache: KVCache, work: Work) -> int:
    """Two finished rows whose pages the device still reads; the pages that are mapped."""
    cache.step([300, 200, 10, 0])
    for slot, token_count in ((0, 300), (1, 200)):
        work.use(cache, slot, token_count)
    cache.step([0, 0, 10, 0])
    return int(cache.stats().mapped_bytes)


def test_nothing_is_unmapped_before_the_device_is_done_with_it() -> None:
    with quiet_cache() as (cache, work):
        cache.keep_finished(0.0)
        mapped = leave_two_rows(cache, work)
        now_s = time.monotonic()
        rest_s = tend(cache, now_s)
        assert (cache.stats().mapped_bytes, work.waits) == (mapped, 0)
        assert rest_s is not None
        assert 0 < rest_s < 0.1, "it looks again soon"
        work.finish()
        tend(cache, now_s)
        assert (kept_pages(cache), work.waits) == (0, 0)


def test_a_proof_that_only_waiting_can_tell_of_is_waited_for_in_the_background_in_the_end() -> None:
    with quiet_cache() as (cache, work):
        cache.keep_finished(0.0)
        leave_two_rows(cache, work)
        now_s = time.monotonic()
        tend(cache, now_s)
        assert work.waits == 0
        for _ in range(2):  # the rows are marked one after the other
            now_s += PROOF_PATIENCE_S + 0.01
            tend(cache, now_s)
        assert kept_pages(cache) == 0
        assert work.waits > 0


def test_a_request_that_is_short_waits_for_the_device_and_gets_the_pages() -> None:
    with quiet_cache(page_count=90) as (cache, work):
        leave_two_rows(cache, work)
        cache.grow(2, 500)
        assert work.waits > 0
        assert cache.length(2) == 500


def test_pages_of_the_next_request_in_a_row_are_not_waited_for_without_need() -> None:
    with quiet_cache() as (cache, work):
        leave_two_rows(cache, work)
        assert cache.acquire_slot(250) == 0
        cache.grow(0, 250)
        cache.step([251, 0, 11, 0])
        assert work.waits == 0


def test_surplus_of_a_running_row_is_marked_by_a_fence_and_let_go_when_that_is_passed() -> None:
    asked: list[int] = []

    def counting(work: Work) -> Fence:
        def fence() -> WorkProof:
            asked.append(work.submitted)
            return work.fence()

        return fence

    with quiet_cache(fence=counting) as (cache, work):
        cache.step([900, 0, 0, 0])
        work.use(cache, 0, 900)
        cache.step([0, 0, 0, 0])
        assert cache.acquire_slot(60) == 0
        cache.grow(0, 60)
        work.use(cache, 0, 60)
        mapped, times_asked, now_s = cache.stats().mapped_bytes, len(asked), time.monotonic()
        for _ in range(5):
            tend(cache, now_s)
        assert (cache.stats().mapped_bytes, len(asked)) == (mapped, times_asked + 1)
        work.finish()
        tend(cache, now_s)
        assert cache.stats().mapped_bytes < mapped
        assert work.waits == 0


def test_surplus_that_was_filled_and_forgotten_after_the_mark_is_marked_again() -> None:
    with quiet_cache() as (cache, work):
        cache.step([900, 0, 0, 0])
        cache.step([60, 0, 0, 0])
        now_s = time.monotonic()
        work.use(cache, 0, 60)
        tend(cache, now_s)  # marked, and not passed yet
        cache.step([900, 0, 0, 0])
        work.finish()
        work.use(cache, 0, 900)
        cache.step([60, 0, 0, 0])
        mapped = cache.stats().mapped_bytes
        tend(cache, now_s)
        assert cache.stats().mapped_bytes == mapped
        work.finish()
        tend(cache, now_s)
        assert cache.stats().mapped_bytes < mapped


@pytest.mark.parametrize("take", ["fork", "acquire"])
def test_a_row_that_is_emptied_for_a_new_request_is_waited_for_first(take: str) -> None:
    with quiet_cache(spec_of(Layout.FUSED, max_batch_size=2)) as (cache, work):
        cache.step([300, 0])
        if take == "fork":
            cache.step([300, 200])
            work.use(cache, 1, 200)
            cache.free_slot(1)
            assert cache.fork_slot(0) == 1
        else:
            assert cache.fork_slot(0) == 1
            work.use(cache, 1, 300)
            cache.free_slot(1)  # its pages are another's too: not for the next request
            assert cache.acquire_slot() == 1
        assert work.waits > 0


def test_a_row_that_a_request_takes_while_its_pages_are_being_given_up_is_waited_for_too() -> None:
    taken: list[int] = []

    class SlowProof(WorkProof):
        def wait(self) -> None:
            if not taken:
                taken.append(cache.acquire_slot(200))
            super().wait()

    with quiet_cache(page_count=80, fence=lambda work: lambda: SlowProof(work, work.submitted)) as (cache, work):
        cache.step([300, 200, 10, 0])
        work.use(cache, 0, 300)
        cache.step([0, 200, 10, 0])
        work.use(cache, 1, 200)
        cache.step([0, 0, 10, 0])
        cache.grow(2, 500)
        assert taken == [1]


def test_a_cache_of_the_session_that_is_short_waits_for_no_other_ones_device() -> None:
    host, work = working_host(100)
    one = KVCache(host, FUSED, fence=work.fence, background=False)
    other = KVCache(host, FUSED, background=False)
    mapped = leave_two_rows(one, work)
    with pytest.raises(PoolExhausted):
        other.grow(other.acquire_slot(), 500)
    assert (work.waits, one.stats().mapped_bytes) == (0, mapped)
    work.finish()
    other.grow(0, 500)
    assert (work.waits, other.length(0), one.length(2)) == (0, 500, 10)
    host.close()


def test_a_device_that_does_not_answer_costs_no_page() -> None:
    """What was unmapped before it failed is put back all the same."""
    broken: list[bool] = []

    class BreakingProof(WorkProof):
        def wait(self) -> None:
            if broken and self.number == 2:
                raise RuntimeError("the device does not answer")
            super().wait()

    with quiet_cache(page_count=80, fence=lambda work: lambda: BreakingProof(work, work.submitted)) as (cache, work):
        cache.step([300, 200, 10, 0])
        work.use(cache, 0, 300)
        cache.step([0, 200, 10, 0])
        work.use(cache, 1, 200)
        cache.step([0, 0, 10, 0])
        broken.append(True)
        with pytest.raises(RuntimeError):
            cache.grow(2, 500)
        assert cache.length(2) == 10
        broken.clear()
        cache.grow(2, 500)


def test_a_fence_that_fails_does_not_end_the_background(caplog: pytest.LogCaptureFixture) -> None:
    host = HostPages()
    broken: list[bool] = []

    def fence() -> None:
        if broken:
            raise RuntimeError("the device does not answer")

    with KVCache(host, FUSED, fence=fence) as cache, caplog.at_level(logging.ERROR):
        cache.step([900, 0, 0, 0])
        assert cache.settle(60)
        cache.keep_finished(0.0)
        broken.append(True)
        cache.step([0, 0, 0, 0])
        assert cache.settle(60)
        assert "the device does not answer" in caplog.text
        mapped = cache.stats().mapped_bytes
        broken.clear()
        assert cache.settle(60)
        assert cache.stats().mapped_bytes < mapped
    host.close()


def test_gathering_idle_pages_never_waits_also_for_a_slot_that_is_used_once_more_in_that_moment() -> None:
    used: list[int] = []

    class ReusedProof(WorkProof):
        def done(self) -> bool:
            is_done = super().done()
            if is_done and not used:
                used.append(cache.acquire_slot(200))
                work.use(cache, used[0], 200)
                cache.free_slot(used[0])
            return is_done

    with quiet_cache(page_count=80, fence=lambda work: lambda: ReusedProof(work, work.submitted)) as (cache, work):
        cache.step([300, 0, 0, 0])
        work.use(cache, 0, 300)
        cache.step([0, 0, 0, 0])
        work.finish()
        assert cache.gather_idle(10) == []
        assert used == [0]
        assert work.waits == 0
