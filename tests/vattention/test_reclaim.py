"""Pages that vattd wants back: idle ones go without a call of the engine's, running ones by its word."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vattention.host_pages import HostPages, Work, WorkProof, working_host
from tests.vattention.token_values import check, spec_of, write
from vatt.errors import DriverError
from vatt.pages import Extent, page_count_of
from vattention.kvcache import KVCache
from vattention.layout import Layout
from vattention.reclaimer import Reclaim, ReclaimDepth, Reclaimer

PAGE = 4096
FUSED = spec_of(Layout.FUSED)  # 576 bytes a token: 100 tokens fill 15 pages
WAIT_S = 10.0
LONG_S = 60.0
IDLE, RUNNING = ReclaimDepth.IDLE, ReclaimDepth.RUNNING


def pages_of(token_count: int) -> int:
    return -(-token_count * FUSED.token_bytes // PAGE)


class Vattd:
    """Stands for who asks and hears the answers."""

    def __init__(self, host: HostPages) -> None:
        self.host = host
        self.answers: list[int] = []
        self.given_pages = 0
        self.failure: Exception | None = None
        self.changed = threading.Condition()
        self.reclaimer = Reclaimer(host.pages, self.give_back, self.answer)

    def ask(self, page_count: int, depth: ReclaimDepth, within_s: float = LONG_S, reclaim_id: int = 1) -> None:
        self.reclaimer.ask(Reclaim(reclaim_id, page_count, depth, within_s))

    def give_back(self, extents: Sequence[Extent]) -> None:
        if self.failure is not None:
            raise self.failure
        self.host.give_back(extents)
        self.given_pages += page_count_of(extents)

    def answer(self, reclaim_id: int) -> None:
        with self.changed:
            self.answers.append(reclaim_id)
            self.changed.notify_all()

    def wait_for(self, *answers: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.answers == [*answers], WAIT_S), self.answers


Rig = tuple[Vattd, KVCache, Work]


@contextmanager
def rig_of(page_count: int = 1000, fence: Callable[[Work], Callable[[], WorkProof]] | None = None) -> Iterator[Rig]:
    """A cache whose own background does nothing, so that what goes is what was asked for."""
    host, work = working_host(page_count)
    vattd = Vattd(host)
    with KVCache(host, FUSED, fence=fence(work) if fence else work.fence, background=False) as cache:
        cache.keep_finished(1.0)
        yield vattd, cache, work
        vattd.reclaimer.close()
        work.finish()
    host.close()
    assert (host.leased_pages, host.mapper.mapped_pages) == (0, 0)
    assert not [thread for thread in threading.enumerate() if thread.name == "vattention-reclaim"]


def finish_a_slot(cache: KVCache, work: Work, kept_tokens: int = 300, running_tokens: int = 100) -> None:
    """Slot 0 is over and keeps its pages, slot 1 runs."""
    cache.step([kept_tokens, running_tokens, 0, 0])
    write(cache, 1, 1, 0, running_tokens)
    work.use(cache, 0, kept_tokens)
    cache.step([0, running_tokens, 0, 0])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 120), st.sampled_from(ReclaimDepth))
def test_an_idle_engine_gives_back_what_is_asked_for_without_a_call_of_its_own(
    page_count: int, depth: ReclaimDepth
) -> None:
    with rig_of() as (vattd, cache, work):
        finish_a_slot(cache, work)
        work.finish()
        kept = cache.stats().kept_bytes // PAGE
        assert kept == pages_of(300)
        vattd.ask(page_count, depth)
        vattd.wait_for(1)
        assert vattd.given_pages >= min(page_count, kept)
        assert cache.length(1) == 100 <= cache.capacity(1)
        check(cache, 1, 1, 100)


def test_unmapped_pages_go_before_those_that_are_kept_mapped() -> None:
    with rig_of() as (vattd, cache, work):
        finish_a_slot(cache, work)
        work.finish()
        vattd.host.pages.set_growth_step(cache, 1000)  # so that the page cache keeps them
        vattd.host.pages.put(vattd.host.lease(20))
        cached, kept = vattd.host.pages.page_count, cache.stats().kept_bytes
        assert cached >= 20
        vattd.ask(20, IDLE)
        vattd.wait_for(1)
        assert cache.stats().kept_bytes == kept


def test_pages_that_the_device_may_use_are_given_back_once_it_is_done() -> None:
    asked = threading.Event()

    class WatchedProof(WorkProof):
        def done(self) -> bool:
            asked.set()
            return super().done()

    with rig_of(fence=lambda work: lambda: WatchedProof(work, work.submitted)) as (vattd, cache, work):
        finish_a_slot(cache, work)
        vattd.ask(30, IDLE)
        assert asked.wait(WAIT_S)
        assert vattd.answers == []
        assert cache.stats().kept_bytes == pages_of(300) * PAGE
        work.finish()
        vattd.wait_for(1)
        assert vattd.given_pages >= 30
        assert work.waits == 0


def test_a_reclaim_is_answered_in_time_though_the_device_is_not_done() -> None:
    with rig_of() as (vattd, cache, work):
        finish_a_slot(cache, work)
        vattd.ask(30, RUNNING, within_s=0.05)
        vattd.wait_for(1)
        assert cache.stats().kept_bytes == pages_of(300) * PAGE
        assert work.waits == 0


def test_the_engine_is_asked_for_what_idle_pages_do_not_make_up_for() -> None:
    wanted: list[int] = []
    with rig_of() as (vattd, cache, work):
        finish_a_slot(cache, work)
        work.finish()

        def on_pressure(page_count: int) -> None:
            wanted.append(page_count)
            assert vattd.given_pages == 70 - page_count >= pages_of(300)
            assert cache._rows.idle_pages(finished_only=False) == 0
            cache.free_slot(1)

        vattd.reclaimer.on_pressure = on_pressure
        vattd.ask(70, RUNNING)
        vattd.wait_for(1)
        assert len(wanted) == 1
        assert vattd.given_pages >= pages_of(300) + pages_of(100)


def test_running_requests_are_left_alone_where_only_idle_pages_are_wanted() -> None:
    with rig_of() as (vattd, cache, work):
        finish_a_slot(cache, work)
        work.finish()
        vattd.reclaimer.on_pressure = lambda page_count: cache.free_slot(1)
        vattd.ask(500, IDLE)
        vattd.wait_for(1)
        assert cache.length(1) == 100
        check(cache, 1, 1, 100)


def test_what_running_slots_have_over_their_need_goes_before_the_engine_is_asked() -> None:
    pressed: list[int] = []
    with rig_of() as (vattd, cache, work):
        finish_a_slot(cache, work, kept_tokens=900)
        work.finish()
        assert cache.acquire_slot(60) == 0  # in the row of a longer request
        cache.grow(0, 60)
        write(cache, 0, 2, 0, 60)
        vattd.reclaimer.on_pressure = pressed.append
        vattd.ask(pages_of(900) - pages_of(60), RUNNING)
        vattd.wait_for(1)
        assert pressed == []
        check(cache, 0, 2, 60)
        check(cache, 1, 1, 100)


def test_pages_that_a_request_has_announced_are_not_idle() -> None:
    with rig_of() as (vattd, cache, work):
        slot = cache.acquire_slot(400)
        cache.settle()
        assert cache.capacity(slot) >= 400
        work.finish()
        vattd.ask(500, RUNNING)
        vattd.wait_for(1)
        assert cache.capacity(slot) >= 400


@pytest.mark.parametrize("failure", [RuntimeError("a bug of the engine's"), SystemExit(), DriverError("no")], ids=repr)
def test_a_callback_that_fails_is_logged_and_costs_nothing(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def on_pressure(page_count: int) -> None:
        raise failure

    with rig_of() as (vattd, cache, work), caplog.at_level(logging.WARNING):
        finish_a_slot(cache, work)
        work.finish()
        vattd.reclaimer.on_pressure = on_pressure
        vattd.ask(500, RUNNING)
        vattd.wait_for(1)
        assert "on_pressure" in caplog.text
        cache.step([0, 0, 0, 0])
        leased = vattd.host.leased_pages
        assert leased > 0
        vattd.ask(leased, RUNNING, reclaim_id=2)
        vattd.wait_for(1, 2)
        assert vattd.host.leased_pages == 0


class SlowEngine:
    """A callback that returns when it is told."""

    def __init__(self) -> None:
        self.begun, self.end, self.over = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, page_count: int) -> None:
        self.begun.set()
        self.end.wait(WAIT_S)
        self.over.set()


def test_a_later_reclaim_replaces_one_that_has_not_begun() -> None:
    engine = SlowEngine()
    with rig_of() as (vattd, cache, work):
        finish_a_slot(cache, work)
        work.finish()
        vattd.reclaimer.on_pressure = engine
        vattd.ask(500, RUNNING)
        assert engine.begun.wait(WAIT_S)
        for reclaim_id in (2, 3):
            vattd.ask(1, IDLE, reclaim_id=reclaim_id)
        engine.end.set()
        vattd.wait_for(1, 3)


def test_pages_given_back_since_a_reclaim_was_told_count_for_it() -> None:
    """It is told while another one is being carried out, whose pages come back meanwhile."""
    pressed: list[int] = []
    with rig_of() as (vattd, cache, work):
        finish_a_slot(cache, work)
        work.finish()

        def on_pressure(page_count: int) -> None:
            pressed.append(page_count)
            if len(pressed) == 1:
                vattd.ask(page_count, RUNNING, reclaim_id=2)
                vattd.ask(1, IDLE, reclaim_id=3)

        vattd.reclaimer.on_pressure = on_pressure
        vattd.ask(500, RUNNING)
        vattd.wait_for(1, 3)
        assert cache.length(1) == 100


def test_closing_waits_for_no_callback_and_its_thread_ends_with_it() -> None:
    engine = SlowEngine()
    with rig_of() as (vattd, cache, work):
        finish_a_slot(cache, work)
        work.finish()
        vattd.reclaimer.on_pressure = engine
        vattd.ask(500, RUNNING)
        assert engine.begun.wait(WAIT_S)
        vattd.reclaimer.close()
        assert not engine.over.is_set()
        engine.end.set()
        thread = vattd.reclaimer._thread
        assert thread is not None
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert vattd.answers == []


def test_a_callback_may_close() -> None:
    with rig_of() as (vattd, cache, work):
        finish_a_slot(cache, work)
        work.finish()
        closed = threading.Event()

        def on_pressure(page_count: int) -> None:
            vattd.reclaimer.close()
            closed.set()

        vattd.reclaimer.on_pressure = on_pressure
        vattd.ask(500, RUNNING)
        assert closed.wait(WAIT_S)
        thread = vattd.reclaimer._thread
        assert thread is not None
        thread.join(WAIT_S)
        assert not thread.is_alive()
        vattd.ask(1, IDLE, reclaim_id=2)  # of no effect any more


def test_closing_ends_a_search_that_is_under_way() -> None:
    with rig_of() as (vattd, cache, work):
        finish_a_slot(cache, work)
        vattd.ask(500, IDLE, within_s=3600)
        vattd.reclaimer.close()


def test_a_cache_that_fails_does_not_keep_the_pages_of_others(caplog: pytest.LogCaptureFixture) -> None:
    def fence() -> None:
        raise RuntimeError("the device does not answer")

    with rig_of() as (vattd, cache, work), caplog.at_level(logging.ERROR):
        broken = KVCache(vattd.host, FUSED, background=False)
        broken.step([100, 0, 0, 0])
        broken.step([0, 0, 0, 0])
        broken.fence = broken._rows.fence = fence
        finish_a_slot(cache, work)
        work.finish()
        vattd.ask(1000, IDLE)
        vattd.wait_for(1)
        assert "does not answer" in caplog.text
        assert vattd.given_pages >= pages_of(300)
        broken.fence = broken._rows.fence = lambda: None
        broken.close()


def test_pages_that_cannot_be_given_back_are_not_lost() -> None:
    with rig_of() as (vattd, cache, work):
        finish_a_slot(cache, work)
        work.finish()
        vattd.failure = DriverError("no")
        vattd.ask(10, IDLE)
        vattd.wait_for(1)
        vattd.failure = None
        cache.step([400, 100, 50, 0])
        check(cache, 1, 1, 100)


def test_a_reclaim_that_no_thread_could_be_started_for_does_not_keep_the_next_one_from_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with rig_of() as (vattd, cache, work), caplog.at_level(logging.WARNING):
        finish_a_slot(cache, work)
        work.finish()
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", fail)
            vattd.ask(10, IDLE)
        assert "can't start new thread" in caplog.text
        vattd.ask(10, IDLE, reclaim_id=2)
        vattd.wait_for(2)
        assert vattd.given_pages >= 10


def test_a_reclaimer_without_a_thread_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with rig_of() as (vattd, _, _):
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", fail)
            vattd.ask(10, IDLE)
        vattd.reclaimer.close()


def test_steps_and_reclaims_do_not_disturb_each_other() -> None:
    """A page that goes although a token fills it, or is still in use, ends the process or fails the check."""
    pressed = threading.Event()

    def on_pressure(page_count: int) -> None:
        pressed.set()  # the scheduler preempts when it comes to it

    with rig_of(page_count=200) as (vattd, cache, work):
        vattd.reclaimer.on_pressure = on_pressure
        lengths = np.zeros(4, dtype=np.int64)
        for step in range(300):
            slot = step % 3
            had = int(lengths[slot])
            lengths[slot] = 0 if had > 200 or pressed.is_set() else had + 7
            pressed.clear()
            cache.step(lengths)
            if lengths[slot]:
                write(cache, slot, slot, had, int(lengths[slot]))
            for other in range(3):
                check(cache, other, other, int(lengths[other]))
                work.use(cache, other, int(lengths[other]))
            if step % 5 == 0:
                work.finish()
            vattd.ask(1 + step % 40, RUNNING if step % 2 else IDLE, within_s=0.02, reclaim_id=step)
