"""A vattd that goes on with an earlier one's pages and cannot write its journal: it goes on all the same.

Its writes fail in turn while a session claims its pages, while what is left of its slab is swept, and while it ends.
What the journal says then is never less than there is, so that no vattd after it lends too much.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from tests.faults.calls import HostCalls, journal_writes
from tests.faults.least import check_reached
from tests.vattention.vmm.rig import KIB
from vatt.errors import VattError
from vattd.driver_thread import DriverThread
from vattd.journal import Journal, JournalFacts, SessionFacts, read_journal
from vattd.ledger import Ledger
from vattd.page_notes import JournalNotes
from vattd.page_run import PageRun
from vattd.pool import Pool
from vattd.recovery import Recovery, Survivor
from vattd.rules import PoolLimits, PoolRules
from vattd.snapshot import PageState
from vattd.stock import Stock
from vattd.wish import Purpose, Wish
from vattention.vmm import open_physical

MAX_PAGES = 8
PAGE = 64 * KIB
FACTS = JournalFacts("host", PAGE)
CODE = "ENOSPC"


class Server:
    """One vattd's life, but for its doors."""

    def __init__(self, path: Path, incarnation: int) -> None:
        self.path, self.journal = path, Journal(path, FACTS)
        self.driver, self.thread = open_physical("host", PAGE), DriverThread()
        stock = Stock(MAX_PAGES, shares_zone=False, first_zone=self.journal.next_zone)
        self.journal.use_zone(stock.first_zone)
        self.ledger = Ledger(stock, page_size_bytes=PAGE, incarnation=incarnation)
        self.broken: list[BaseException] = []
        notes = JournalNotes(self.journal, self.ledger, self.driver)
        limits = PoolLimits(0, MAX_PAGES * PAGE, 0)
        self.pool = Pool(self.ledger, self.driver, self.thread, limits, self.broken.append, PoolRules(), notes)
        self.recovery = Recovery(self.pool, self.driver, self.thread, self.journal, grace_until_s=1e9)
        survivors = [
            Survivor(entry.facts, cast(Any, None), entry.page_count)
            for entry in self.journal.entries
            if isinstance(entry.facts, SessionFacts)
        ]
        self.recovery.restore(self.journal.entries, survivors)
        self._running = asyncio.ensure_future(self.pool.run())

    def open_session(self, session_id: str, tenant: str) -> None:
        self.pool.open_session(session_id, tenant, 0)
        self.journal.add_session(SessionFacts(session_id, "", tenant, 7, 0, 0, "", 0.0))

    def end_session(self, session_id: str) -> None:
        """As Sessions.end does."""
        self.pool.end_session(session_id, unmapped=False)
        self.recovery.ended(session_id)
        self.journal.drop(session_id)

    async def lease(self, session_id: str, page_count: int) -> list[PageRun]:
        return list(await self.pool.lease(Wish(session_id, "r", page_count, page_count, Purpose.GROW, 0.0)))

    async def settle(self) -> None:
        """Until all is swept, and nothing is worked on."""
        await asyncio.gather(*self.recovery._sweeping, return_exceptions=True)
        at_work = (PageState.CREATING, PageState.DESTROYING, PageState.QUARANTINED)
        for _ in range(20_000):
            if not any(self.ledger.snapshot().pages_by_state[state] for state in at_work):
                return
            await asyncio.sleep(0.0005)
        raise TimeoutError(f"{self.ledger.snapshot().pages_by_state}")

    def check(self, *, idle_pages: bool = True) -> None:
        """The ledger says what the driver has, and the journal no less; idle pages that no engine can reach do not
        matter."""
        snapshot = self.ledger.snapshot()
        assert not self.broken
        assert snapshot.backed_pages * PAGE == self.driver.memory().pages_bytes
        said = {type(entry.facts): 0 for entry in read_journal(self.path, FACTS)}
        for entry in read_journal(self.path, FACTS):
            said[type(entry.facts)] += entry.page_count
        slabs = sum(count for kind, count in said.items() if kind is not SessionFacts)
        assert said.get(SessionFacts, 0) >= self.ledger.lent_pages
        assert slabs >= (snapshot.backed_pages if idle_pages else self.ledger.lent_pages)

    async def close(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        self.thread.close()
        self.driver.close()
        self.journal.close()


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
def test_a_claim_a_sweep_and_an_end_go_on_though_the_journal_cannot_be_written(tmp_path: Path, for_ever: bool) -> None:
    for at in itertools.count(1):
        with journal_writes() as writes:
            if not asyncio.run(_claim_sweep_and_end(tmp_path / f"journal-{at}", writes, at, for_ever)):
                check_reached("journal: claim, sweep and end", CODE, at - 1)
                return


async def _claim_sweep_and_end(path: Path, writes: HostCalls, at: int, for_ever: bool) -> bool:
    """Was the `at`th write made to fail?"""
    first = Server(path, 1)
    first.open_session("s", "a")
    runs = await first.lease("s", 6)
    [held, idle] = [PageRun(part, runs[0].generation) for part in runs[0].extent.split(4) if part is not None]
    first.pool.give_back("s", [idle])
    slab = first.driver.export(held.extent.first)
    await first.close()

    server = Server(path, 2)
    try:
        writes.fail(CODE, at, for_ever=for_ever)
        claimed = await server.recovery.claim("s", [held], {held.extent.zone: slab})
        assert list(claimed.runs) == [held]
        await server.settle()
        server.check()
        assert server.recovery.is_over
        assert server.ledger.snapshot().backed_pages == 4, "what was idle has gone"
        server.end_session("s")
        await server.settle()
        server.check()
        assert server.ledger.snapshot().backed_pages == 0
        met = writes.clear()
        server.open_session("t", "b")
        assert await server.lease("t", MAX_PAGES)
        server.check()
    finally:
        await server.close()
        os.close(slab)
    return met


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
def test_a_lease_that_cannot_be_noted_is_refused_and_a_later_one_is_not(tmp_path: Path, for_ever: bool) -> None:
    for at in itertools.count(1):
        with journal_writes() as writes:
            if not asyncio.run(_lease_twice(tmp_path / f"journal-{at}", writes, at, for_ever)):
                check_reached("journal: first lease", CODE, at - 1)
                return


async def _lease_twice(path: Path, writes: HostCalls, at: int, for_ever: bool) -> bool:
    """Was the `at`th write made to fail?"""
    server = Server(path, 1)
    try:
        server.open_session("s", "a")
        writes.fail(CODE, at, for_ever=for_ever)
        with suppress(VattError):
            await server.pool.lease(Wish("s", "first", MAX_PAGES // 2, MAX_PAGES // 2, Purpose.GROW, 0.0))
        met = writes.clear()
        server.check(idle_pages=False)
        assert await server.lease("s", MAX_PAGES // 2)
        server.check(idle_pages=False)
    finally:
        await server.close()
    return met
