"""The pool between a ledger and a driver that fails: both sides stay in step, and callers are told the truth."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from tests.vattd.fake_driver import FakeDriver
from vatt.errors import (
    DeviceLost,
    DriverError,
    InvalidRequest,
    KillRefused,
    OutOfMemory,
    PageNotHeld,
    PoolExhausted,
    SessionFenced,
    ShuttingDown,
    SystemLimit,
    VattError,
)
from vatt.pages import Extent
from vattd.driver_thread import GOES_AHEAD_OF, DriverThread, Urgency
from vattd.engines import NoEngines
from vattd.guarantee import Access, Guarantee
from vattd.ledger import Ledger
from vattd.lending import MAX_WAITING_OF_SESSION
from vattd.page_notes import NoNotes, PageNotes
from vattd.page_run import PageRun
from vattd.pool import Pool
from vattd.reclaim import Request
from vattd.rules import PoolLimits, PoolRules
from vattd.scrub import Scrub
from vattd.snapshot import PageState
from vattd.stock import Stock
from vattd.wish import Purpose, Wish

MAX_PAGES = 64


class Bench:
    """A pool at work, and what it said was broken."""

    def __init__(
        self,
        driver: FakeDriver,
        *,
        headroom_pages: int = 0,
        min_pages: int = 0,
        kill_after_s: float | None = None,
        scrub: Scrub = Scrub.CROSS_TENANT,
        isolate: bool = False,
        notes: PageNotes | None = None,
    ) -> None:
        self.driver = driver
        self.broken: list[BaseException] = []
        shares_zone = driver.recycles_across_tenants and not isolate
        stock = Stock(MAX_PAGES, shares_zone=shares_zone, scrub=scrub)
        self.ledger = Ledger(stock, page_size_bytes=4096, incarnation=1)
        self.thread = DriverThread()
        limits = PoolLimits(min_pages * 4096, MAX_PAGES * 4096, headroom_pages * 4096)
        rules = PoolRules(reclaim_within_s=0.01, kill_after_s=kill_after_s)
        self.pool = Pool(self.ledger, driver, self.thread, limits, self.broken.append, rules, notes)
        self._requests = 0

    def counts(self) -> dict[str, int]:
        return {state.value: count for state, count in self.ledger.snapshot().pages_by_state.items() if count}

    async def lease(self, session_id: str, page_count: int, **changes: Any) -> list[PageRun]:
        self._requests += 1
        wish: dict[str, Any] = {
            "session_id": session_id,
            "request_id": f"r{self._requests}",
            "page_count": page_count,
            "min_page_count": page_count,
            "purpose": Purpose.GROW,
            "deadline_s": 0.0,
            **changes,
        }
        return list(await self.pool.lease(Wish(**wish)))

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - the pool has no event for every state a test may wait for
            await asyncio.sleep(0)


def page_count_of(runs: Sequence[PageRun]) -> int:
    return sum(run.extent.page_count for run in runs)


def at_work(driver: FakeDriver, story: Callable[[Bench], Awaitable[None]], **limits: Any) -> Bench:
    """Run a story against a pool at work. Whatever happens in it, every page must be accounted for in the end."""

    async def run() -> Bench:
        bench = Bench(driver, **limits)
        work = asyncio.create_task(bench.pool.run())
        try:
            await asyncio.wait_for(story(bench), 10)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            bench.thread.close()
        return bench

    bench = asyncio.run(run())
    assert sum(bench.counts().values()) == MAX_PAGES
    return bench


def fail_on(call: str, error: VattError, after: int = 0) -> Callable[[str, Extent], None]:
    """Fail every call of one kind after the first few."""
    seen = 0

    def fail(name: str, extent: Extent) -> None:
        nonlocal seen
        if name == call:
            seen += 1
            if seen > after:
                raise error

    return fail


def test_a_device_without_memory_is_told_to_the_caller_and_asked_again_later() -> None:
    driver = FakeDriver()
    driver.fail = fail_on("create", OutOfMemory("the device is full"))

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        with pytest.raises(OutOfMemory, match="full"):
            await bench.lease("s", 4)
        assert bench.counts() == {"unbacked": MAX_PAGES}
        driver.fail = lambda call, extent: None
        runs = await bench.lease("s", 4, purpose=Purpose.ADMIT, deadline_s=asyncio.get_running_loop().time() + 5)
        assert page_count_of(runs) == 4

    at_work(driver, story)


def test_a_wait_is_bounded_by_its_deadline_though_the_device_stays_full() -> None:
    driver = FakeDriver()
    driver.fail = fail_on("create", OutOfMemory("the device is full"))

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        with pytest.raises(OutOfMemory):
            await bench.lease("s", 4, purpose=Purpose.ADMIT, deadline_s=asyncio.get_running_loop().time() + 0.05)

    at_work(driver, story)


def test_pages_that_the_driver_will_not_give_up_are_quarantined_for_good() -> None:
    driver = FakeDriver()
    driver.fail = fail_on("destroy", DriverError("no"))

    async def story(bench: Bench) -> None:
        for session_id, tenant in (("s", "a"), ("t", "b")):
            bench.pool.open_session(session_id, tenant, 0)
        await bench.lease("s", MAX_PAGES)
        bench.pool.end_session("s", unmapped=True)
        with pytest.raises(PoolExhausted):
            await bench.lease("t", 1)
        assert bench.counts() == {"quarantined": MAX_PAGES}

    at_work(driver, story)


def test_pages_that_cannot_be_scrubbed_are_made_anew_and_lent_once_they_can() -> None:
    driver = FakeDriver(recycles=True, fresh_is_zero=False)
    driver.fail = fail_on("scrub", OutOfMemory("no room for a context"))

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        with pytest.raises(OutOfMemory, match="context"):
            await bench.lease("s", 4)
        assert bench.counts().get("quarantined", 0) == 0
        driver.fail = lambda call, extent: None
        late_s = asyncio.get_running_loop().time() + 5
        assert page_count_of(await bench.lease("s", 4, purpose=Purpose.ADMIT, deadline_s=late_s)) == 4

    at_work(driver, story)


def test_a_device_that_is_nearly_full_gives_the_pages_that_it_has() -> None:
    driver = FakeDriver()

    def fail(call: str, extent: Extent) -> None:
        if call == "create" and len(driver.created) + extent.page_count > 11:
            raise OutOfMemory("the device is full")

    driver.fail = fail

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        assert page_count_of(await bench.lease("s", MAX_PAGES, min_page_count=1)) == 11

    at_work(driver, story)


def test_fresh_pages_that_may_hold_anything_are_scrubbed_before_they_are_lent() -> None:
    driver = FakeDriver(recycles=True, fresh_is_zero=False)

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        await bench.lease("s", 8)
        assert driver.calls.index("scrub") > driver.calls.index("create")
        assert bench.ledger.snapshot().scrubbed_pages_total == 8

    at_work(driver, story)


def test_another_tenants_idle_pages_are_scrubbed_where_pages_pass_on_and_replaced_where_they_do_not() -> None:
    for recycles, expected in ((True, "scrub"), (False, "destroy")):
        driver = FakeDriver(recycles=recycles)

        async def story(bench: Bench, expected: str = expected) -> None:
            for session_id, tenant in (("s", "a"), ("t", "b")):
                bench.pool.open_session(session_id, tenant, 0)
            bench.pool.give_back("s", await bench.lease("s", MAX_PAGES))
            assert page_count_of(await bench.lease("t", MAX_PAGES)) == MAX_PAGES
            assert expected in bench.driver.calls

        assert at_work(driver, story).counts() == {"leased": MAX_PAGES}


def test_a_lost_device_ends_lending_and_is_reported_once() -> None:
    driver = FakeDriver()
    driver.fail = fail_on("create", DeviceLost("an uncorrectable error"))

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        for _ in range(2):
            with pytest.raises(DeviceLost, match="uncorrectable"):
                await bench.lease("s", 1)
        assert len(bench.broken) == 1

    at_work(driver, story)


@pytest.mark.parametrize("call", ["create", "scrub", "destroy"])
def test_with_a_lost_device_nothing_is_left_as_worked_on_and_nothing_is_recycled(call: str) -> None:
    driver = FakeDriver(recycles=True, fresh_is_zero=False)

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        bench.pool.open_session("t", "b", 0)
        # Of two tenants in turn, so that what one returns is in several runs.
        runs = [await bench.lease("st"[number % 2], 1) for number in range(6)]
        for number in (0, 2, 4):
            bench.pool.give_back("s", runs[number])
        driver.fail = fail_on(call, DeviceLost("an uncorrectable error"))
        lost = bench.lease("s", MAX_PAGES - 3) if call != "destroy" else bench.pool.shrink()
        with pytest.raises(DeviceLost):
            await lost
        assert len(bench.broken) == 1
        assert "creating" not in bench.counts()
        assert "scrubbing" not in bench.counts()
        assert "destroying" not in bench.counts()
        backed_pages = bench.ledger.snapshot().backed_pages
        assert backed_pages == len(driver.created), "the ledger's account is the driver's"
        calls = len(driver.calls)
        with pytest.raises(DeviceLost):
            await bench.lease("t", 1)
        with pytest.raises(DeviceLost):
            await bench.pool.shrink()
        assert len(driver.calls) == calls

    at_work(driver, story)


def test_what_cannot_be_noted_costs_no_pages_when_they_are_to_be_destroyed() -> None:
    driver = FakeDriver()

    class FullJournal(NoNotes):
        is_full = False

        def backed(self, zone: int) -> None:
            if self.is_full:
                raise SystemLimit("no space left on /run")

    notes = FullJournal()

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        bench.pool.give_back("s", await bench.lease("s", 8))
        notes.is_full = True
        assert await bench.pool.shrink() == 8
        assert not bench.counts().get("quarantined")
        with pytest.raises(SystemLimit):
            await bench.lease("s", 1)
        notes.is_full = False

    at_work(driver, story, notes=notes)


def test_a_bug_of_ours_ends_lending_too() -> None:
    driver = FakeDriver()

    def bug(call: str, extent: Extent) -> None:
        raise ZeroDivisionError("a bug")

    driver.fail = bug

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        with pytest.raises(VattError, match="broken"):
            await bench.lease("s", 1)
        assert isinstance(bench.broken[0], ZeroDivisionError)

    at_work(driver, story)


def test_pages_returned_while_they_are_exported_are_not_handed_out() -> None:
    driver = FakeDriver()

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        runs = await bench.lease("s", 4)
        before = len(os.listdir("/proc/self/fd"))
        pull = asyncio.create_task(bench.pool.exports.pull("s", runs, "user"))
        for _ in range(2):
            await asyncio.sleep(0)  # the pull has been checked, and waits for the driver
        bench.pool.give_back("s", runs)
        with pytest.raises(PageNotHeld):
            await pull
        assert len(os.listdir("/proc/self/fd")) == before

    at_work(driver, story)


def test_an_export_that_fails_half_way_leaves_no_descriptor_open() -> None:
    driver = FakeDriver()

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        runs = await bench.lease("s", 4)
        driver.fail = fail_on("export", DriverError("no"), after=2)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(DriverError):
            await bench.pool.exports.pull("s", runs, "user")
        assert len(os.listdir("/proc/self/fd")) == before

    at_work(driver, story)


@pytest.mark.parametrize("before_the_driver", [True, False])
def test_descriptors_of_a_pull_whose_caller_has_gone_are_closed(before_the_driver: bool) -> None:
    driver = FakeDriver()

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        runs = await bench.lease("s", 4)
        before = len(os.listdir("/proc/self/fd"))
        pull = asyncio.create_task(bench.pool.exports.pull("s", runs, "user"))
        await asyncio.sleep(0)
        if not before_the_driver:
            await bench.until(lambda: driver.calls.count("export") == 4)
        pull.cancel()
        await asyncio.gather(pull, return_exceptions=True)
        # The driver makes them all the same, and may not have begun yet.
        await bench.until(lambda: driver.calls.count("export") == 4)
        await bench.until(lambda: len(os.listdir("/proc/self/fd")) == before)

    at_work(driver, story)


def test_a_device_lost_in_an_export_ends_lending() -> None:
    driver = FakeDriver()

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        runs = await bench.lease("s", 1)
        driver.fail = fail_on("export", DeviceLost("gone"))
        with pytest.raises(DeviceLost):
            await bench.pool.exports.pull("s", runs, "user")
        with pytest.raises(DeviceLost):
            await bench.lease("s", 1)
        with pytest.raises(DeviceLost):
            await bench.pool.exports.pull("s", runs, "user")
        assert len(bench.broken) == 1, "every call meets it, and one is told"

    at_work(driver, story)


def test_a_fenced_session_gets_nothing_that_it_waited_for() -> None:
    async def story(bench: Bench) -> None:
        for session_id in ("s", "t"):
            bench.pool.open_session(session_id, "a", 0)
        await bench.lease("s", MAX_PAGES)
        late_s = asyncio.get_running_loop().time() + 60
        waiting = asyncio.create_task(bench.lease("t", 1, purpose=Purpose.ADMIT, deadline_s=late_s))
        await bench.until(lambda: bench.pool.waiting_pages == 1)
        bench.pool.fence("t")
        with pytest.raises(SessionFenced):
            await waiting

    at_work(FakeDriver(), story)


def test_a_tenant_without_session_and_pages_is_forgotten_with_its_zone() -> None:
    driver = FakeDriver()

    async def story(bench: Bench) -> None:
        for uid in (1, 2):  # the name is free again
            bench.pool.open_session("s", "a", uid)
            await bench.lease("s", 4)
            bench.pool.end_session("s", unmapped=False)
            await bench.until(lambda: not bench.ledger.snapshot().tenants)
        await bench.until(lambda: driver.calls.count("drop_zone") == 2)
        await bench.until(lambda: bench.counts().get("clean") == 3)

    at_work(driver, story, min_pages=3)


def test_a_session_may_have_only_so_many_leases_waiting() -> None:
    async def story(bench: Bench) -> None:
        for session_id in ("s", "t"):
            bench.pool.open_session(session_id, "a", 0)
        await bench.lease("s", MAX_PAGES)
        late = {"purpose": Purpose.ADMIT, "deadline_s": asyncio.get_running_loop().time() + 60}
        waiting = [asyncio.create_task(bench.lease("t", 1, **late)) for _ in range(MAX_WAITING_OF_SESSION)]
        await bench.until(lambda: bench.pool.waiting_pages == MAX_WAITING_OF_SESSION)
        with pytest.raises(InvalidRequest, match="wait already"):
            await bench.lease("t", 1, **late)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert bench.pool.waiting_pages == 0

    at_work(FakeDriver(), story)


def test_background_work_is_not_kept_waiting_by_any_number_of_urgent_calls() -> None:
    async def run() -> int:
        thread = DriverThread()
        order: list[str] = []
        gate = threading.Event()
        calls: list[asyncio.Future[Any]] = [asyncio.ensure_future(thread.run(Urgency.LEASE, gate.wait))]
        await asyncio.sleep(0)
        for urgency, count in ((Urgency.BACKGROUND, 1), (Urgency.EXPORT, 200)):
            for _ in range(count):
                calls.append(asyncio.ensure_future(thread.run(urgency, order.append, urgency.name)))
                await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*calls)
        thread.close()
        return order.index("BACKGROUND")

    assert 1 < asyncio.run(run()) <= GOES_AHEAD_OF


def test_headroom_is_filled_for_who_is_attached_and_given_back_when_they_go() -> None:
    driver = FakeDriver()

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        await bench.until(lambda: bench.counts() == {"clean": 8, "unbacked": MAX_PAGES - 8})
        await bench.lease("s", 8)
        await bench.until(lambda: bench.counts().get("clean") == 8)
        bench.pool.end_session("s", unmapped=False)
        await bench.until(lambda: bench.counts() == {"unbacked": MAX_PAGES})
        assert not driver.created

    at_work(driver, story, headroom_pages=8)


def test_the_minimum_is_kept_when_everybody_has_gone() -> None:
    async def story(bench: Bench) -> None:
        await bench.until(lambda: bench.counts().get("clean") == 10)
        bench.pool.open_session("s", "a", 0)
        await bench.lease("s", 30)
        bench.pool.end_session("s", unmapped=True)
        await bench.until(lambda: bench.counts().get("unbacked") == MAX_PAGES - 10)
        assert bench.ledger.snapshot().pages_by_state[PageState.DIRTY] <= 10

    at_work(FakeDriver(), story, min_pages=10)


def test_who_waits_when_lending_stops_is_told_why() -> None:
    async def story(bench: Bench) -> None:
        for session_id in ("s", "t"):
            bench.pool.open_session(session_id, "a", 0)
        await bench.lease("s", MAX_PAGES)
        deadline_s = asyncio.get_running_loop().time() + 60
        waiting = asyncio.create_task(bench.lease("t", 1, purpose=Purpose.ADMIT, deadline_s=deadline_s))
        await bench.until(lambda: bench.pool.waiting_pages == 1)
        bench.pool.stop_lending(ShuttingDown("bye"))
        with pytest.raises(ShuttingDown):
            await waiting
        with pytest.raises(ShuttingDown):
            await bench.lease("s", 1)

    at_work(FakeDriver(), story)


def test_a_repeat_of_a_waiting_request_gets_the_same_answer() -> None:
    async def story(bench: Bench) -> None:
        for session_id in ("s", "t"):
            bench.pool.open_session(session_id, "a", 0)
        await bench.lease("s", MAX_PAGES)
        again = {"request_id": "same", "purpose": Purpose.ADMIT, "deadline_s": asyncio.get_running_loop().time() + 60}
        first = asyncio.create_task(bench.lease("t", 2, **again))
        await bench.until(lambda: bench.pool.waiting_pages == 2)
        second = asyncio.create_task(bench.lease("t", 2, **again))
        await asyncio.sleep(0)
        first.cancel()  # its caller went away; the repeat still wants the pages
        await asyncio.sleep(0)
        bench.pool.end_session("s", unmapped=True)
        assert page_count_of(await second) == 2

    at_work(FakeDriver(), story)


def test_a_repeat_that_asks_for_something_else_gets_the_answer_of_the_first() -> None:
    async def story(bench: Bench) -> None:
        for session_id in ("s", "t"):
            bench.pool.open_session(session_id, "a", 0)
        await bench.lease("s", MAX_PAGES)
        late_s = asyncio.get_running_loop().time() + 60
        first = asyncio.create_task(bench.lease("t", 2, request_id="x", purpose=Purpose.ADMIT, deadline_s=late_s))
        await bench.until(lambda: bench.pool.waiting_pages == 2)
        other = asyncio.create_task(bench.lease("t", 9, request_id="x"))
        await asyncio.sleep(0)
        for task in (first, other):
            task.cancel()
        await asyncio.gather(first, other, return_exceptions=True)
        assert bench.pool.waiting_pages == 0

    at_work(FakeDriver(), story)


def test_who_may_not_wait_long_is_answered_in_time_behind_one_who_may() -> None:
    async def story(bench: Bench) -> None:
        now = asyncio.get_running_loop().time
        for session_id in ("s", "t", "u"):
            bench.pool.open_session(session_id, "a", 0)
        await bench.lease("s", MAX_PAGES)
        patient = asyncio.create_task(bench.lease("t", 2, purpose=Purpose.ADMIT, deadline_s=now() + 60))
        await bench.until(lambda: bench.pool.waiting_pages == 2)
        for wait_s in (0.0, 0.05):
            begin_s = now()
            with pytest.raises(PoolExhausted):
                await bench.lease("u", 1, purpose=Purpose.ADMIT, deadline_s=begin_s + wait_s)
            assert now() - begin_s < 5
        assert not patient.done()
        bench.pool.end_session("s", unmapped=True)
        await patient

    at_work(FakeDriver(), story)


@pytest.mark.parametrize("policy", [Scrub.CROSS_TENANT, Scrub.ALWAYS])
@pytest.mark.parametrize("recycles", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_pages_that_come_back_are_scrubbed_for_their_own_tenant_only_where_that_is_asked_for(
    policy: Scrub, recycles: bool, fails: bool
) -> None:
    """Also where a scrub fails: the pages are destroyed and made anew then, never lent as they are."""
    driver = FakeDriver(recycles=recycles)
    driver.fail = fail_on("scrub", DriverError("no", call="scrub")) if fails else driver.fail

    async def story(bench: Bench) -> None:
        for session_id in ("s", "t"):
            bench.pool.open_session(session_id, "a", 0)
        bench.pool.give_back("s", await bench.lease("s", MAX_PAGES))
        late_s = asyncio.get_running_loop().time() + 5
        wait = {"purpose": Purpose.ADMIT, "deadline_s": late_s}
        assert page_count_of(await bench.lease("t", MAX_PAGES, **wait)) == MAX_PAGES
        snapshot = bench.ledger.snapshot()
        renewed_pages = snapshot.scrubbed_pages_total + snapshot.destroyed_pages_total
        assert renewed_pages == (MAX_PAGES if policy is Scrub.ALWAYS else 0)

    at_work(driver, story, scrub=policy)


@pytest.mark.parametrize("isolate", [False, True])
def test_what_comes_back_is_zeroed_without_anybody_asking_where_everything_is(isolate: bool) -> None:
    driver = FakeDriver(recycles=True)

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        bench.pool.give_back("s", await bench.lease("s", 10))
        await bench.until(lambda: bench.counts() == {"clean": 10, "unbacked": MAX_PAGES - 10})

    at_work(driver, story, scrub=Scrub.ALWAYS, isolate=isolate)


def test_with_never_nothing_is_scrubbed_and_pages_pass_on_as_they_are() -> None:
    driver = FakeDriver(recycles=True, fresh_is_zero=False)

    async def story(bench: Bench) -> None:
        for session_id, tenant in (("s", "a"), ("t", "b")):
            bench.pool.open_session(session_id, tenant, 0)
        first = await bench.lease("s", MAX_PAGES)
        bench.pool.give_back("s", first)
        assert [run.extent for run in await bench.lease("t", MAX_PAGES)] == [run.extent for run in first]

    at_work(driver, story, scrub=Scrub.NEVER, headroom_pages=8)
    assert "scrub" not in driver.calls
    assert "destroy" not in driver.calls


def test_isolated_tenants_get_new_pages_where_a_scrub_would_have_done() -> None:
    driver = FakeDriver(recycles=True, fresh_is_zero=False)

    async def story(bench: Bench) -> None:
        for session_id, tenant in (("s", "a"), ("t", "b")):
            bench.pool.open_session(session_id, tenant, 0)
        bench.pool.give_back("s", await bench.lease("s", MAX_PAGES))
        assert page_count_of(await bench.lease("t", MAX_PAGES)) == MAX_PAGES
        snapshot = bench.ledger.snapshot()
        assert snapshot.destroyed_pages_total >= MAX_PAGES
        assert snapshot.created_pages_total >= 2 * MAX_PAGES

    at_work(driver, story, isolate=True)


def test_fresh_pages_of_isolated_tenants_go_to_who_needs_them_although_none_can_be_scrubbed() -> None:
    """They are nobody else's, and so nobody else can have them made ready: they must not stay where they are."""
    driver = FakeDriver(recycles=True, fresh_is_zero=False)
    driver.page_size_bytes = 2 << 20  # so that a background slice is one page

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        await bench.lease("s", 4)
        for extent in bench.ledger.stock.begin_create(bench.ledger.shelf("s"), MAX_PAGES):
            bench.ledger.stock.finish_create(extent, clean=False)
            driver.created |= set(extent.page_ids)
        bench.pool.open_session("t", "b", 0)
        assert page_count_of(await bench.lease("t", MAX_PAGES - 4)) == MAX_PAGES - 4

    at_work(driver, story, isolate=True)


@pytest.mark.parametrize("policy", Scrub)
@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("recycles", [True, False])
def test_when_the_last_tenant_goes_nothing_stays_backed(recycles: bool, isolate: bool, policy: Scrub) -> None:
    driver = FakeDriver(recycles=recycles, fresh_is_zero=not recycles)
    driver.page_size_bytes = 2 << 20  # so that a background slice is one page

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        bench.pool.give_back("s", await bench.lease("s", 4))
        await bench.until(lambda: bench.ledger.shelf("s").ready_pages == 8)
        bench.pool.end_session("s", unmapped=True)
        await bench.until(lambda: bench.counts() == {"unbacked": MAX_PAGES})
        assert not driver.created

    at_work(driver, story, headroom_pages=8, scrub=policy, isolate=isolate)


def test_a_running_request_goes_ahead_of_new_ones_that_wait() -> None:
    async def story(bench: Bench) -> None:
        for session_id in ("s", "t"):
            bench.pool.open_session(session_id, "a", 0)
        await bench.lease("s", MAX_PAGES - 2)
        late_s = asyncio.get_running_loop().time() + 60
        large = asyncio.create_task(bench.lease("t", 40, purpose=Purpose.ADMIT, deadline_s=late_s))
        await bench.until(lambda: bench.pool.waiting_pages == 40)
        small = asyncio.create_task(bench.lease("t", 1, purpose=Purpose.ADMIT, deadline_s=late_s))
        await bench.until(lambda: bench.pool.waiting_pages == 41)
        assert page_count_of(await bench.lease("s", 2)) == 2
        assert not small.done(), "a small wish would starve the large one ahead of it"
        bench.pool.end_session("s", unmapped=True)
        await asyncio.gather(large, small)

    at_work(FakeDriver(), story)


def test_a_session_that_may_not_be_killed_is_passed_over_and_the_pool_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Protected(NoEngines):
        killed: list[str] = []  # noqa: RUF012

        def kill(self, session_id: str, cause: str) -> None:
            if session_id == "b":
                raise KillRefused("it is another user's")
            self.killed.append(session_id)

    async def story(bench: Bench) -> None:
        engines = bench.pool.engines = Protected()
        for session_id in "bca":
            bench.pool.open_session(session_id, session_id, 0)
        await bench.lease("b", MAX_PAGES // 2)
        await bench.lease("c", MAX_PAGES // 2)
        bench.pool.configure("a", Guarantee(min_pages=MAX_PAGES // 2 + 1), Access(frozenset({0})))
        deadline_s = asyncio.get_running_loop().time() + 5
        waits = asyncio.create_task(bench.lease("a", MAX_PAGES // 2 + 1, purpose=Purpose.ADMIT, deadline_s=deadline_s))
        await bench.until(lambda: engines.killed == ["c"])
        waits.cancel()
        assert bench.pool.pressure.reclaims.counts.killed == 1

    bench = at_work(FakeDriver(), story, kill_after_s=0.02)
    assert not bench.broken
    assert "session b goes on: it is another user's" in caplog.text


def test_what_lies_idle_in_a_silent_sessions_slab_is_asked_of_others_where_a_min_needs_it() -> None:
    class Asked(NoEngines):
        pages_by_session: dict[str, int] = {}  # noqa: RUF012

        def listens(self, session_id: str) -> bool:
            return session_id != "silent"

        def ask_back(self, request: Request) -> None:
            self.pages_by_session[request.session_id] = request.page_count

    async def story(bench: Bench) -> None:
        engines = bench.pool.engines = Asked()
        bench.ledger.restore_session("silent", "old", 0, 4)
        bench.ledger.stock.inherit_left(MAX_PAGES // 2)
        bench.pool.configure("a", Guarantee(min_pages=8), Access(frozenset({0})))
        for session_id in "ab":
            bench.pool.open_session(session_id, session_id, 0)
        await bench.lease("b", MAX_PAGES // 2 - 8)
        deadline_s = asyncio.get_running_loop().time() + 5
        waits = asyncio.create_task(bench.lease("a", 8, purpose=Purpose.ADMIT, deadline_s=deadline_s))
        await bench.until(lambda: engines.pages_by_session.get("b", 0) >= 4)
        bench.pool.end_session("b", unmapped=True)
        assert page_count_of(await waits) == 8

    at_work(FakeDriver(), story)


@pytest.mark.parametrize("turns", range(6))
def test_a_pool_ends_when_it_is_told_to_also_in_the_moment_in_which_something_changes(turns: int) -> None:
    async def run() -> None:
        bench = Bench(FakeDriver())
        work = asyncio.create_task(bench.pool.run())
        for _ in range(8):
            await asyncio.sleep(0)
        bench.pool.ask_again("nobody")
        for _ in range(turns):
            await asyncio.sleep(0)
        work.cancel()
        done, _ = await asyncio.wait([work], timeout=5)
        bench.thread.close()
        assert done, "it goes on"

    asyncio.run(run())


def test_pages_that_come_back_while_a_zone_is_dropped_make_no_lease_larger_than_asked() -> None:
    """The lease waits for memory that an earlier vattd's engines have yet; what comes back meanwhile is more."""
    driver = FakeDriver()

    async def story(bench: Bench) -> None:
        pool, loop = bench.pool, asyncio.get_running_loop()
        bench.ledger.stock.inherit_left(MAX_PAGES - 4)
        pool.open_session("s", "a", 0)
        [run] = await bench.lease("s", 4)
        pool.open_session("gone", "b", 0)
        drop_zone = driver.drop_zone

        def drop_and_give_back(zone: int) -> None:
            loop.call_soon_threadsafe(pool.give_back, "s", [PageRun(Extent(run.extent.first, 3), run.generation)])
            drop_zone(zone)

        driver.drop_zone = drop_and_give_back  # type: ignore[method-assign]
        leasing = asyncio.create_task(bench.lease("s", 1, purpose=Purpose.ADMIT, deadline_s=loop.time() + 5))
        await asyncio.sleep(0)
        pool.end_session("gone", unmapped=True)
        assert page_count_of(await leasing) == 1
        assert driver.calls.count("drop_zone") == 1

    at_work(driver, story)
