"""What the status page costs vattd: a refresh on the event loop and beside it, and the page's size.

`python -m benchmarks.status_page` measures a pool of an 80 GB GPU, wholly leased by 256 sessions of 64 tenants with a
min each, some of which wait. Pages, sessions and the driver are made up; the ledger, the policy, the messages and their
rendering are vattd's. Times are of CPU, and depend on the machine and on what else it does.
"""

from __future__ import annotations

import asyncio
import gzip
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from tests.vattd.fake_driver import FakeDriver
from vatt.usage import Usage
from vattd.driver_thread import DriverThread
from vattd.guarantee import Access, Guarantee
from vattd.happenings import Kind
from vattd.ledger import Ledger
from vattd.page_maps import PageMaps
from vattd.pool import Pool
from vattd.reservation import Reservation
from vattd.rules import PoolLimits
from vattd.status import DaemonFacts, Status
from vattd.status_feed import FRESH_FOR_S
from vattd.status_json import render
from vattd.status_page import page
from vattd.status_reader import EVERY_S, REACH_S, StatusReader
from vattd.stock import Stock
from vattd.tenant_book import Source
from vattd.wish import Purpose, Wish

PAGE = 2 << 20
MAX_PAGES = 38_000
TENANTS, SESSIONS_EACH = 64, 4
REFRESHES = 30


class Book:
    """Every tenant's min was set by a command."""

    revision = 1
    _set = Reservation(Access(frozenset([1000])), min_bytes=100 * PAGE), Source.COMMAND

    def in_force(self, name: str) -> tuple[Reservation, Source]:
        return self._set


class Sessions(list[Any]):
    def state_of(self, session: Any) -> str:
        return "attached"


class World:
    """A vattd's inside, without its edges."""

    def __init__(self) -> None:
        driver = FakeDriver(recycles=True)
        self.ledger = Ledger(Stock(MAX_PAGES, shares_zone=True), page_size_bytes=PAGE, incarnation=1)
        self.thread = DriverThread()
        limits = PoolLimits(0, MAX_PAGES * PAGE, 0)
        self.pool = Pool(self.ledger, driver, self.thread, limits, lambda error: None)
        self.sessions = Sessions()
        self.waiting: list[asyncio.Future[Any]] = []
        for number in range(TENANTS):
            self.ledger.configure(f"tenant-{number}", Guarantee(min_pages=100), Access(frozenset([1000])))
            for _ in range(SESSIONS_EACH):
                self._open(f"tenant-{number}")
        recovery: Any = SimpleNamespace(recovered_total=0, lost_total=0, awaits=lambda session_id: False)
        sessions: Any = self.sessions
        self.status = Status(
            DaemonFacts(1, time.time()), sessions, self.pool, driver.device, cast(Any, Book()), recovery
        )
        self.maps = PageMaps(self.ledger)
        self.reader = StatusReader(self.status, self.pool, self.maps)

    def _open(self, tenant: str) -> None:
        session_id = f"4711-{len(self.sessions) + 1}"
        facts = SimpleNamespace(pid=4711, uid=1000, client_name="an engine of some length", attach_time_s=time.time())
        self.sessions.append(SimpleNamespace(session_id=session_id, tenant=tenant, facts=facts))
        self.ledger.open_session(session_id, tenant, 1000)
        self.pool.happenings.note(Kind.SESSION_ATTACHED, tenant=tenant, session_id=session_id, message="pid 4711")

    async def fill(self) -> None:
        """All is leased and reported, every other tenant waits for more, and the time lines are full."""
        loop = asyncio.get_running_loop()
        working = loop.create_task(self.pool.run())
        each = MAX_PAGES // len(self.sessions)
        for session in self.sessions:
            for part in range(4):
                deadline_s = loop.time() + 60
                await self.pool.lease(Wish(session.session_id, f"r{part}", each // 4, 1, Purpose.ADMIT, deadline_s))
            pages = self.ledger.noted_pages(session.session_id)
            self.pool.report_usage(session.session_id, Usage(mapped_pages=pages, token_bytes=pages * PAGE // 2))
        for session in self.sessions[:: 2 * SESSIONS_EACH]:
            wish = Wish(session.session_id, "more", 500, 500, Purpose.ADMIT, loop.time() + 3600)
            self.waiting.append(asyncio.ensure_future(self.pool.lease(wish)))
        await self.reader.read()
        working.cancel()
        for number in range(int(REACH_S / EVERY_S)):
            self.reader.sample(loop.time() - REACH_S + number * EVERY_S)


def milliseconds(call: Callable[[], object]) -> list[float]:
    """CPU time of this thread."""
    times = []
    for _ in range(REFRESHES):
        begin_s = time.thread_time()
        call()
        times.append((time.thread_time() - begin_s) * 1e3)
    return times


async def on_the_loop(world: World, pause_s: float) -> list[float]:
    """The same of a refresh: what leases may have to wait for."""
    times = []
    for _ in range(REFRESHES):
        begin_s = time.thread_time()
        await world.reader.read()
        times.append((time.thread_time() - begin_s) * 1e3)
        await asyncio.sleep(pause_s)
    return times


async def measure(table: Table) -> None:
    world = World()
    await world.fill()
    memory = await world.pool.memory()
    reading = await world.reader.read()
    for what, times in (
        ("a refresh on the event loop, one after the other", await on_the_loop(world, 0.0)),
        ("the same once a second, with what caches are left", await on_the_loop(world, FRESH_FOR_S)),
        ("  of that: what GetStatus says", milliseconds(lambda: world.status.instant(memory))),
        ("  of that: the page ids of the page map", milliseconds(lambda: list(world.ledger.patches()))),
        ("  of that: the time lines", milliseconds(lambda: world.reader.timeline.samples(time.monotonic()))),
        ("a sample, every 5 s", milliseconds(lambda: world.reader.sample(asyncio.get_running_loop().time()))),
        ("rendering, beside the event loop", milliseconds(lambda: render(reading))),
    ):
        table.add_row(what, f"{statistics.median(times):.2f} ms", f"{max(times):.2f} ms")
    body = render(reading)
    table.add_row("status.json", f"{len(body):,} B", f"{len(gzip.compress(body, 5)):,} B in gzip")
    for future in world.waiting:
        future.cancel()
    world.thread.close()


def main() -> None:
    title = f"the status page, {TENANTS} tenants, {TENANTS * SESSIONS_EACH} sessions, {MAX_PAGES:,} pages"
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("median", justify="right")
    table.add_column("most", justify="right")
    asyncio.run(measure(table))
    content = page()
    table.add_row("the page", f"{len(content.body):,} B", f"{len(content.zipped):,} B in gzip")
    Console().print(table)


if __name__ == "__main__":
    main()
