"""Conditions are told when they begin and when they end, each once."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import cast

from tests.vattd.fake_driver import FakeDriver
from tests.vattd.test_pool import MAX_PAGES, Bench, at_work, fail_on
from vatt.errors import OutOfMemory, PoolExhausted
from vattd.conditions import Conditions
from vattd.guarantee import Access, Guarantee
from vattd.happenings import Kind
from vattd.recovery import Recovery

TOLD = (
    Kind.PROMISE_BROKEN,
    Kind.PROMISE_KEPT,
    Kind.SHORTAGE_BEGAN,
    Kind.SHORTAGE_ENDED,
    Kind.PAGES_QUARANTINED,
    Kind.RECOVERY_ENDED,
)


def no_recovery() -> Recovery:
    return cast(Recovery, SimpleNamespace(awaited_count=0, recovered_total=0, lost_total=0))


def told(bench: Bench) -> list[tuple[Kind, str, int]]:
    return [(what.kind, what.tenant, what.page_count) for what in bench.pool.happenings.since(0) if what.kind in TOLD]


async def look_until(bench: Bench, conditions: Conditions, kind: Kind) -> None:
    """The loop's clock goes on by itself, and so does what depends on it."""
    while bench.pool.happenings.counts[kind] == 0:
        conditions.look(asyncio.get_running_loop().time())
        await asyncio.sleep(0)


def test_a_promise_is_told_broken_and_kept_again() -> None:
    async def story(bench: Bench) -> None:
        pool = bench.pool
        conditions = Conditions(pool, no_recovery())
        pool.configure("a", Guarantee(min_pages=8), Access(frozenset([0])))
        pool.open_session("holder", "b", 0)
        runs = await bench.lease("holder", MAX_PAGES)
        pool.open_session("s", "a", 0)
        with suppress(PoolExhausted):
            await bench.lease("s", 8)
        await look_until(bench, conditions, Kind.PROMISE_BROKEN)
        conditions.look(asyncio.get_running_loop().time())
        assert told(bench) == [(Kind.PROMISE_BROKEN, "a", 8)]
        pool.give_back("holder", runs)
        await look_until(bench, conditions, Kind.PROMISE_KEPT)
        conditions.look(asyncio.get_running_loop().time())
        assert told(bench) == [(Kind.PROMISE_BROKEN, "a", 8), (Kind.PROMISE_KEPT, "a", 0)]

    at_work(FakeDriver(), story)


def test_a_broken_promise_that_is_taken_back_is_not_told_kept() -> None:
    async def story(bench: Bench) -> None:
        pool = bench.pool
        conditions = Conditions(pool, no_recovery())
        pool.configure("a", Guarantee(min_pages=8), Access(frozenset([0])))
        pool.open_session("holder", "b", 0)
        await bench.lease("holder", MAX_PAGES)
        pool.open_session("s", "a", 0)
        with suppress(PoolExhausted):
            await bench.lease("s", 8)
        await look_until(bench, conditions, Kind.PROMISE_BROKEN)
        pool.unconfigure("a")
        conditions.look(asyncio.get_running_loop().time())
        assert told(bench) == [(Kind.PROMISE_BROKEN, "a", 8)]

    at_work(FakeDriver(), story)


def test_a_shortage_is_told_when_it_begins_and_when_it_ends() -> None:
    driver = FakeDriver()
    driver.fail = fail_on("create", OutOfMemory("the device is full"))

    async def story(bench: Bench) -> None:
        conditions = Conditions(bench.pool, no_recovery())
        bench.pool.open_session("s", "a", 0)
        with suppress(OutOfMemory):
            await bench.lease("s", 4)
        await look_until(bench, conditions, Kind.SHORTAGE_BEGAN)
        driver.fail = lambda call, extent: None
        while bench.pool.shortage is not None:
            with suppress(OutOfMemory):
                await bench.lease("s", 4)
            await asyncio.sleep(0)  # a lease that is refused at once lets nobody else run
        await look_until(bench, conditions, Kind.SHORTAGE_ENDED)
        assert told(bench) == [(Kind.SHORTAGE_BEGAN, "", 0), (Kind.SHORTAGE_ENDED, "", 0)]

    at_work(driver, story)


def test_pages_that_the_driver_keeps_are_told_once() -> None:
    driver = FakeDriver()
    driver.fail = fail_on("destroy", OutOfMemory("it will not let go"))

    async def story(bench: Bench) -> None:
        conditions = Conditions(bench.pool, no_recovery())
        bench.pool.open_session("s", "a", 0)
        await bench.lease("s", 4)
        bench.pool.end_session("s", unmapped=False)
        await bench.until(lambda: bench.ledger.limit_pages < MAX_PAGES)
        await look_until(bench, conditions, Kind.PAGES_QUARANTINED)
        conditions.look(asyncio.get_running_loop().time())
        lost_pages = sum(pages for kind, _, pages in told(bench) if kind is Kind.PAGES_QUARANTINED)
        assert lost_pages == MAX_PAGES - bench.ledger.limit_pages

    at_work(driver, story)


def test_the_end_of_a_recovery_is_told_with_what_came_of_it() -> None:
    async def story(bench: Bench) -> None:
        recovery = SimpleNamespace(awaited_count=2, recovered_total=0, lost_total=0)
        conditions = Conditions(bench.pool, cast(Recovery, recovery))
        conditions.look(0.0)
        recovery.awaited_count, recovery.recovered_total, recovery.lost_total = 0, 1, 1
        conditions.look(0.0)
        conditions.look(0.0)
        [end] = [what for what in bench.pool.happenings.since(0) if what.kind is Kind.RECOVERY_ENDED]
        assert "1 sessions are back, 1 ended" in end.message

    at_work(FakeDriver(), story)
