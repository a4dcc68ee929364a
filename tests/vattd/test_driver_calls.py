"""What the driver thread makes is counted, under names that do not depend on who asks."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.vattd.fake_driver import FakeDriver
from tests.vattd.test_pool import Bench, at_work, fail_on
from vatt.errors import DriverError, InvalidRequest, OutOfMemory, SystemLimit, VattError
from vattd.driver_calls import DriverCalls
from vattd.driver_thread import DriverThread, Urgency


def call_counts(calls: DriverCalls) -> dict[str, int]:
    return {call: sum(times.counts) for call, times in calls.times.items()}


def test_each_of_the_drivers_calls_is_counted_once_for_all_its_pages() -> None:
    driver = FakeDriver(recycles=True, fresh_is_zero=False)

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        runs = await bench.lease("s", 4)
        for fd in await bench.pool.exports.pull("s", runs, "user"):
            os.close(fd)
        await bench.pool.memory()
        bench.pool.end_session("s", unmapped=False)
        await bench.until(lambda: not driver.created)

    bench = at_work(driver, story)
    counts = call_counts(bench.thread.calls)
    assert counts.keys() == {"create", "scrub", "export", "memory", "destroy"}
    assert counts["export"] == counts["memory"] == 1
    for call in ("create", "scrub", "destroy"):
        assert counts[call] == driver.calls.count(call)
    assert not bench.thread.calls.errors


def test_calls_that_fail_are_counted_with_the_rest_and_by_the_drivers_code() -> None:
    driver = FakeDriver()
    driver.fail = fail_on("create", OutOfMemory("full", call="cuMemCreate", code="CUDA_ERROR_OUT_OF_MEMORY"))

    async def story(bench: Bench) -> None:
        bench.pool.open_session("s", "a", 0)
        with pytest.raises(OutOfMemory):
            await bench.lease("s", 1)
        driver.fail = lambda call, extent: None
        await bench.until(lambda: bench.pool.shortage is None)
        await bench.lease("s", 1)

    calls = at_work(driver, story).thread.calls
    refused = calls.errors["create", "CUDA_ERROR_OUT_OF_MEMORY"]
    assert refused >= 1
    assert calls.errors.total() == refused
    assert call_counts(calls)["create"] == driver.calls.count("create") > refused


def test_an_error_without_a_code_is_counted_by_its_reason_and_a_clients_mistake_is_none_of_the_drivers() -> None:
    def adopt_zone(error: VattError) -> None:
        raise error

    async def story() -> DriverCalls:
        thread = DriverThread()
        for error in (
            DriverError("x"),
            SystemLimit("y"),
            InvalidRequest("not a slab"),
            OutOfMemory("z", code="ENOMEM"),
        ):
            with pytest.raises(type(error)):
                await thread.run(Urgency.EXPORT, adopt_zone, error)
        thread.close()
        return thread.calls

    calls = asyncio.run(story())
    assert call_counts(calls) == {"adopt_zone": 4}
    assert calls.errors == {
        ("adopt_zone", "DRIVER_ERROR"): 1,
        ("adopt_zone", "SYSTEM_LIMIT"): 1,
        ("adopt_zone", "ENOMEM"): 1,
    }


def test_a_call_whose_caller_has_gone_is_counted_all_the_same() -> None:
    def scrub() -> None: ...

    async def story() -> DriverCalls:
        thread = DriverThread()
        gone = asyncio.ensure_future(thread.run(Urgency.LEASE, scrub))
        await asyncio.sleep(0)
        gone.cancel()
        await thread.run(Urgency.LEASE, scrub)
        thread.close()
        return thread.calls

    assert call_counts(asyncio.run(story())) == {"scrub": 2}


def test_a_copy_stays_as_it_was() -> None:
    calls = DriverCalls()
    calls.note("create", 0.001, DriverError("x"))
    copy = calls.copy()
    calls.note("create", 0.001, DriverError("x"))
    assert call_counts(copy) == {"create": 1}
    assert copy.errors == {("create", "DRIVER_ERROR"): 1}
