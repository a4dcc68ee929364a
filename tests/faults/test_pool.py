"""The pool with a real driver whose calls fail in turn: the ledger says what the driver has, and goes on.

Run as it is for the host; test_on_cuda.py runs it in a simulated machine.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.faults.calls import Calls, CudaCalls, host_calls
from tests.faults.least import check_reached
from tests.faults.state import kept_by_the_kernel, open_fds
from tests.vattention.vmm.rig import KIB, ON_CUDA
from vatt.errors import VattError
from vattd import workshop
from vattd.driver_thread import DriverThread
from vattd.ledger import Ledger
from vattd.page_run import PageRun
from vattd.pool import Pool
from vattd.rules import PoolLimits, PoolRules
from vattd.snapshot import PageState
from vattd.stock import Stock
from vattd.wish import Purpose, Wish
from vattention.vmm import PhysicalDriver, open_physical
from vattention.vmm.cuda_physical import CudaPhysical

MAX_PAGES = 8
PAGE = None if ON_CUDA else 64 * KIB
CODES = CudaCalls.codes if ON_CUDA else ("ENOMEM", "EMFILE", "ENOSPC", "EINTR", "EPERM")
AT_WORK = (PageState.CREATING, PageState.SCRUBBING, PageState.DESTROYING)


class Bench:
    """A pool at work on a real driver, with a session of each of two tenants."""

    def __init__(self, driver: PhysicalDriver) -> None:
        self.driver = driver
        stock = Stock(MAX_PAGES, shares_zone=driver.recycles_across_tenants)
        self.ledger = Ledger(stock, page_size_bytes=driver.page_size_bytes, incarnation=1)
        self.thread = DriverThread()
        self.broken: list[BaseException] = []
        limits = PoolLimits(0, MAX_PAGES * driver.page_size_bytes, 0)
        self.pool = Pool(self.ledger, driver, self.thread, limits, self.broken.append, PoolRules())
        self._requests = itertools.count(1)
        for session_id, tenant in (("s", "a"), ("t", "b")):
            self.pool.open_session(session_id, tenant, 0)

    async def lease(self, session_id: str, page_count: int) -> list[PageRun]:
        wish = Wish(session_id, f"r{next(self._requests)}", page_count, page_count, Purpose.GROW, 0.0)
        return list(await self.pool.lease(wish))

    async def settle(self) -> None:
        """Until nothing is worked on."""
        for _ in range(20_000):
            await asyncio.sleep(0.0005)
            if not any(self.ledger.snapshot().pages_by_state[state] for state in AT_WORK):
                return
        raise TimeoutError(f"{self.ledger.snapshot().pages_by_state}")

    def check(self) -> None:
        """The ledger's account is the driver's."""
        snapshot = self.ledger.snapshot()
        assert not self.broken
        assert sum(snapshot.pages_by_state.values()) == MAX_PAGES
        assert snapshot.backed_pages * self.driver.page_size_bytes == self.driver.memory().pages_bytes


async def until_it_works(act: Callable[[], Awaitable[object]]) -> None:
    """After a refusal the pool leaves the device alone for a moment."""
    for _ in range(1000):
        try:
            await act()
        except VattError as error:
            last = error
            await asyncio.sleep(0.005)
        else:
            return
    raise TimeoutError(f"it never works again: {last}")


# Stories: make ready, then yield what is made to fail; it must work afterwards.

Act = Callable[[], Awaitable[object]]
Story = Callable[[Bench], Awaitable[Act]]


async def leasing(bench: Bench) -> Act:
    async def act() -> None:
        bench.pool.give_back("s", await bench.lease("s", 3))

    return act


async def leasing_what_another_tenant_had(bench: Bench) -> Act:
    bench.pool.give_back("t", await bench.lease("t", MAX_PAGES))
    return await leasing(bench)


async def exporting(bench: Bench) -> Act:
    runs = await bench.lease("s", 3)

    async def act() -> None:
        for fd in await bench.pool.exports.pull("s", runs, "user"):
            os.close(fd)

    return act


async def shrinking(bench: Bench) -> Act:
    bench.pool.give_back("s", await bench.lease("s", 6))
    return bench.pool.shrink


async def burying_a_session(bench: Bench) -> Act:
    await bench.lease("t", 3)

    async def act() -> None:
        if bench.ledger.snapshot().sessions[-1].session_id == "t":
            bench.pool.end_session("t", unmapped=False)
        await bench.settle()

    return act


@pytest.fixture
def calls() -> Iterator[Calls]:
    if ON_CUDA:
        yield CudaCalls()
        return
    with host_calls() as calls:
        yield calls


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    "story",
    [leasing, leasing_what_another_tenant_had, exporting, shrinking, burying_a_session],
    ids=lambda story: story.__name__,
)
def test_a_driver_call_that_fails_leaves_the_ledger_and_the_driver_in_step(
    story: Story, code: str, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workshop, "RETRY_S", 0.002)
    monkeypatch.setattr(workshop, "BACKGROUND_SLICE_BYTES", workshop.URGENT_SLICE_BYTES)  # several pages at a time

    async def one(at: int) -> bool:
        fds_before, kept_before = open_fds(), kept_by_the_kernel()
        driver = open_physical("0" if ON_CUDA else "host", PAGE)
        bench = Bench(driver)
        running = asyncio.ensure_future(bench.pool.run())
        try:
            act = await story(bench)
            await bench.settle()
            fds, lent = open_fds(), bench.ledger.lent_pages
            calls.fail(code, at)
            try:
                await act()
            except VattError:
                assert bench.ledger.lent_pages == lent
            await bench.settle()
            met = calls.clear()
            bench.check()
            await until_it_works(act)
            await bench.settle()
            bench.check()
            if isinstance(driver, CudaPhysical):  # the host may have a slab more by now
                assert open_fds() == fds
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            bench.thread.close()
            driver.close()
        assert open_fds() == fds_before
        if ON_CUDA:  # on the host, threads reserve addresses too
            assert kept_by_the_kernel() == kept_before
        return met

    for at in itertools.count(1):
        if not asyncio.run(one(at)):
            check_reached(f"pool: {story.__name__}", code, at - 1)
            return
