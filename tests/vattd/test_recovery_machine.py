"""Leases, returns, lost answers, crashes and claims in any order: no page ever has two owners, and none is lost.

The ledger, the pool, the journal and the recovery are the real ones; the device, the wire and the engines are here.
What an engine does with grants, returns and claims is what vattention.leases does.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.vattd.fake_driver import FakeDriver
from vatt.errors import InvalidRequest, PoolExhausted, SessionFenced, SystemLimit
from vatt.pages import ZONE_PAGES, Extent
from vatt.protocol import GENERATION_BITS
from vattd.driver_thread import DriverThread, Urgency
from vattd.journal import Journal, JournalFacts, SessionFacts
from vattd.ledger import Claimed, Ledger
from vattd.page_notes import JournalNotes
from vattd.page_run import PageRun, runs_of
from vattd.pool import Pool
from vattd.recovery import Recovery, Survivor
from vattd.rules import PoolLimits
from vattd.stock import Stock
from vattd.wish import Purpose, Wish

MAX_PAGES = 24
TENANTS = ("a", "b")
FACTS = JournalFacts("fake", 4096)


class Memory(FakeDriver):
    """A driver whose pages are in a memory that outlives it. It may have adopted zones."""

    def __init__(self, memory: set[int], *, recycles: bool) -> None:
        super().__init__(recycles=recycles, fresh_is_zero=not recycles)
        self.backed = memory
        self.adopted: set[int] = set()
        self.inherited: set[int] = set()

    def create(self, extent: Extent) -> None:
        super().create(extent)
        assert self.backed.isdisjoint(extent.page_ids)
        self.backed.update(extent.page_ids)

    def destroy(self, extent: Extent) -> None:
        super().destroy(extent)
        if self.recycles_across_tenants:  # a GPU's page without a handle here goes with its holder's
            self.backed.difference_update(set(extent.page_ids) - self.inherited)
        else:
            self.backed.difference_update(extent.page_ids)
        self.inherited.difference_update(extent.page_ids)

    def inherit(self, extent: Extent) -> None:
        super().inherit(extent)
        self.inherited.update(extent.page_ids)

    def adopt_zone(self, zone: int, fd: int, mark: int) -> None:
        assert mark == zone + 1
        self.adopted.add(zone)

    def sweeper(self, zone: int) -> Callable[[], None]:
        assert zone in self.adopted
        rest = {page_id for page_id in self.backed - self.created if page_id // ZONE_PAGES == zone}
        return lambda: self.backed.difference_update(rest)


class AtOnce:
    """The driver thread, but that everything happens at once, and is told a moment later."""

    async def run(self, urgency: Urgency, call: Callable[..., Any], *args: Any) -> Any:
        result = call(*args)
        await asyncio.sleep(0)
        return result


@dataclass(eq=False)
class Server:
    """One vattd's life."""

    incarnation: int
    journal: Journal
    driver: Memory
    pool: Pool
    recovery: Recovery
    task: asyncio.Task[None]

    @property
    def ledger(self) -> Ledger:
        return self.pool.ledger


@dataclass(eq=False)
class Engine:
    """A session's other end. `held` are the pages that it has imported; `under_way` are answers not read yet."""

    session_id: str
    tenant: str
    incarnation: int
    held: dict[int, int] = field(default_factory=dict)
    disputed: dict[int, int] = field(default_factory=dict)  # mapped as well, and not its own by vattd's word
    under_way: list[tuple[str, tuple[PageRun, ...]]] = field(default_factory=list)
    owed_cancels: list[str] = field(default_factory=list)
    owed_returns: list[PageRun] = field(default_factory=list)
    is_attached: bool = True

    @property
    def mapped(self) -> dict[int, int]:
        return {**self.held, **self.disputed}

    def lose(self, page_ids: Iterable[int]) -> None:
        for page_id in page_ids:
            if page_id in self.held:
                self.disputed[page_id] = self.held.pop(page_id)


class RecoveryMachine(RuleBasedStateMachine):
    @initialize(recycles=st.booleans())
    def begin(self, recycles: bool) -> None:
        self.recycles = recycles
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.TemporaryDirectory()
        self.memory: set[int] = set()
        self.engines: list[Engine] = []
        self.seen: dict[int, int] = {}  # every page that an engine ever had, and its last generation
        self.numbers = itertools.count(1)
        self.incarnation = 0
        self.has_lied = False
        self.server: Server | None = None
        self.start()

    # vattd

    @precondition(lambda self: self.server is None)
    @rule()
    def start(self) -> None:
        self.incarnation += 1
        journal = Journal(Path(self.directory.name) / "journal", FACTS)
        driver = Memory(self.memory, recycles=self.recycles)
        stock = Stock(MAX_PAGES, shares_zone=self.recycles, first_zone=journal.next_zone)
        journal.use_zone(stock.first_zone)
        ledger = Ledger(stock, page_size_bytes=FACTS.page_size_bytes, incarnation=self.incarnation)
        thread = cast(DriverThread, AtOnce())
        limits = PoolLimits(0, MAX_PAGES * 4096, 2 * 4096)
        pool = Pool(ledger, driver, thread, limits, self.is_broken, None, JournalNotes(journal, ledger, driver))
        recovery = Recovery(pool, driver, thread, journal, grace_until_s=1e9)
        living = {engine.session_id: engine for engine in self.engines}
        survivors = []
        for entry in journal.entries:
            if isinstance(entry.facts, SessionFacts):
                if entry.facts.session_id in living:
                    survivors.append(Survivor(entry.facts, cast(Any, None), entry.page_count))
                else:
                    journal.drop(entry.facts.session_id)
        recovery.restore(journal.entries, survivors)
        task = self.loop.create_task(pool.run())
        self.server = Server(self.incarnation, journal, driver, pool, recovery, task)
        self.work()

    @precondition(lambda self: self.server is not None)
    @rule()
    def crash(self) -> None:
        server = self.up
        self.loop.run_until_complete(self.end(server))
        server.journal.close()
        self.server = None
        for engine in self.engines:
            engine.is_attached = False
        self.free_unreachable()

    async def end(self, server: Server) -> None:
        server.task.cancel()
        await server.recovery.close()
        await asyncio.gather(server.task, return_exceptions=True)

    def is_broken(self, error: BaseException) -> None:
        raise AssertionError("vattd is broken") from error

    @property
    def up(self) -> Server:
        assert self.server is not None
        return self.server

    def work(self) -> None:
        async def settle() -> None:
            for _ in range(200):
                await asyncio.sleep(0)
                await asyncio.gather(*self.up.recovery._sweeping)

        if self.server is not None:
            self.loop.run_until_complete(settle())
            assert not self.server.task.done(), self.server.task

    def free_unreachable(self) -> None:
        """Memory goes when nobody has it any more: on a GPU the page's handle, on the host its zone's slab."""
        held = {page_id for engine in self.engines for page_id in engine.mapped}
        if self.recycles:
            driver = self.server.driver if self.server is not None else None
            kept = held | (driver.created - driver.inherited if driver is not None else set())
        else:
            zones = {page_id // ZONE_PAGES for page_id in held}
            if self.server is not None:
                zones |= self.server.driver.adopted | {page_id // ZONE_PAGES for page_id in self.server.driver.created}
            kept = {page_id for page_id in self.memory if page_id // ZONE_PAGES in zones}
        self.memory &= kept

    # Engines

    @precondition(lambda self: self.server is not None and len(self.engines) < 5)
    @rule(tenant=st.sampled_from(TENANTS))
    def attach(self, tenant: str) -> None:
        engine = Engine(f"7-{next(self.numbers)}", tenant, self.incarnation)
        self.up.pool.open_session(engine.session_id, tenant, 0)
        self.up.journal.add_session(SessionFacts(engine.session_id, "", tenant, 7, 0, 0, "", 0.0))
        self.engines.append(engine)
        self.work()

    def some(self, data: st.DataObject, chosen: Callable[[Engine], bool]) -> Engine | None:
        engines = [engine for engine in self.engines if chosen(engine)]
        return data.draw(st.sampled_from(engines)) if engines else None

    @precondition(lambda self: self.server is not None)
    @rule(data=st.data(), page_count=st.integers(1, 8))
    def lease(self, data: st.DataObject, page_count: int) -> None:
        """vattd answers; whether the engine hears of it is another matter."""
        engine = self.some(data, lambda engine: engine.is_attached)
        if engine is None:
            return
        self.settle(engine)
        request_id = f"r{next(self.numbers)}"
        wish = Wish(engine.session_id, request_id, page_count, 1, Purpose.GROW, 0.0)
        try:
            runs = self.loop.run_until_complete(self.up.pool.lease(wish))
        except PoolExhausted:
            return
        engine.under_way.append((request_id, runs))

    @precondition(lambda self: self.server is not None)
    @rule(tenant=st.sampled_from(TENANTS), page_counts=st.lists(st.integers(1, 6), min_size=1, max_size=3))
    def come(self, tenant: str, page_counts: list[int]) -> None:
        """Engines that have pages at once."""
        for page_count in page_counts:
            if len(self.engines) < 5:
                self.attach(tenant)
                engine = self.engines[-1]
                wish = Wish(engine.session_id, f"r{next(self.numbers)}", page_count, 1, Purpose.GROW, 0.0)
                with suppress(PoolExhausted):
                    self.take_in(engine, self.loop.run_until_complete(self.up.pool.lease(wish)))

    @precondition(lambda self: self.server is not None)
    @rule()
    def restart(self) -> None:
        self.crash()
        self.start()

    @rule(data=st.data(), is_lost=st.booleans())
    def hear(self, data: st.DataObject, is_lost: bool) -> None:
        engine = self.some(data, lambda engine: bool(engine.under_way))
        if engine is None:
            return
        request_id, runs = engine.under_way.pop(data.draw(st.integers(0, len(engine.under_way) - 1)))
        if is_lost or not all(self.can_import(engine, run) for run in runs):
            engine.owed_cancels.append(request_id)
            return
        self.take_in(engine, runs)

    def take_in(self, engine: Engine, runs: Iterable[PageRun]) -> None:
        for run in runs:
            assert self.memory.issuperset(run.extent.page_ids), "a page without memory"
            self.seen.update(dict.fromkeys(run.extent.page_ids, run.generation))
            engine.held.update(dict.fromkeys(run.extent.page_ids, run.generation))

    def can_import(self, engine: Engine, run: PageRun) -> bool:
        """Without vattd only what is in a slab that the engine has already; and nothing of a vattd before the last."""
        if run.generation >> GENERATION_BITS != engine.incarnation:
            return False
        has_slab = not self.recycles and any(page_id // ZONE_PAGES == run.extent.zone for page_id in engine.held)
        return engine.is_attached or has_slab

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        """Unmapped, and to be told to vattd; maybe later."""
        engine = self.some(data, lambda engine: bool(engine.held))
        if engine is None:
            return
        pages = data.draw(st.sets(st.sampled_from(sorted(engine.held)), min_size=1))
        engine.owed_returns += runs_of({page_id: engine.held.pop(page_id) for page_id in pages})
        self.free_unreachable()

    @precondition(lambda self: self.server is not None)
    @rule(data=st.data())
    def tell(self, data: st.DataObject) -> None:
        engine = self.some(data, lambda engine: bool(engine.owed_cancels or engine.owed_returns))
        if engine is not None:
            self.settle(engine)

    def settle(self, engine: Engine) -> None:
        """It may be told also while the session is fenced, and twice."""
        for request_id in engine.owed_cancels:
            self.up.pool.cancel(engine.session_id, request_id)
        for _ in range(2):
            self.up.pool.give_back(engine.session_id, engine.owed_returns)
        engine.owed_cancels, engine.owed_returns = [], []
        self.work()
        self.free_unreachable()

    @precondition(lambda self: self.server is not None)
    @rule(data=st.data(), disk_is_full=st.booleans())
    def re_attach(self, data: st.DataObject, disk_is_full: bool) -> None:
        engine = self.some(data, lambda engine: not engine.is_attached)
        if engine is not None:
            full = SystemLimit("no room is left for the journal") if disk_is_full else None
            journal = self.up.journal
            with patch.object(journal, "note_pages", wraps=journal.note_pages, side_effect=full) as noting:
                self.re_attach_one(engine)
            for call in noting.call_args_list if disk_is_full else ():  # as the next change of each does
                if journal.has(call.args[0]):
                    journal.note_pages(*call.args)

    def re_attach_one(self, engine: Engine) -> None:
        if self.up.recovery.awaits(engine.session_id):
            self.took_in_claim(engine, self.loop.run_until_complete(self.claim_of(engine)))
            return
        engine.incarnation, engine.is_attached = self.incarnation, True
        self.work()
        self.free_unreachable()

    def claim_of(self, engine: Engine) -> Coroutine[Any, Any, Claimed]:
        return self.up.recovery.claim(engine.session_id, runs_of(engine.mapped), self.slabs_of(engine))

    def begin_claim(self, engine: Engine, turns: int) -> asyncio.Task[Claimed]:
        """It has got so far."""
        claim = self.loop.create_task(self.claim_of(engine))
        for _ in range(turns):
            self.loop.run_until_complete(asyncio.sleep(0))
        return claim

    def slabs_of(self, engine: Engine) -> dict[int, int]:
        return {} if self.recycles else {page_id // ZONE_PAGES: -1 for page_id in engine.mapped}

    def took_in_claim(self, engine: Engine, claimed: Claimed) -> None:
        assert self.has_lied or not claimed.refused
        refused = {page_id for run in claimed.refused for page_id in run.extent.page_ids}
        engine.held = {page_id: gen for page_id, gen in engine.mapped.items() if page_id not in refused}
        engine.disputed = {}
        engine.incarnation, engine.is_attached = self.incarnation, True
        self.work()
        self.free_unreachable()

    @precondition(lambda self: self.server is not None)
    @rule(data=st.data())
    def claim_falsely(self, data: st.DataObject) -> None:
        """Another's pages, pages that never were, more than it had: refused, or disputed, and nobody is harmed."""
        engine = self.some(data, lambda engine: self.up.recovery.awaits(engine.session_id))
        if engine is None:
            return
        if data.draw(st.booleans()):  # the others have claimed already
            for other in self.engines:
                if other is not engine and not other.is_attached:
                    self.re_attach_one(other)
        theirs = {page: gen for other in self.engines if other is not engine for page, gen in other.held.items()}
        never = {(2 << 40) + 5: 3, 1: 9 << GENERATION_BITS, 2: 1}
        everything = data.draw(st.sampled_from([theirs, self.seen, never])) or never
        claimed = data.draw(st.sets(st.sampled_from(sorted(everything)), min_size=1, max_size=4))
        slabs = self.slabs_of(engine)
        runs = runs_of({page_id: everything[page_id] for page_id in claimed})
        self.work()
        before = self.up.ledger.snapshot()
        try:
            answer = self.loop.run_until_complete(self.up.recovery.claim(engine.session_id, runs, slabs))
        except InvalidRequest:
            assert self.up.ledger.snapshot() == before
            return
        # From now on it is no honest engine: what it has mapped it has no right to, and it ends.
        self.has_lied = True
        for run in answer.runs:
            for other in self.engines:
                if other is not engine and not other.held.keys().isdisjoint(run.extent.page_ids):
                    assert self.up.recovery.awaits(other.session_id), "another's by its own word, and its too"
                    if not self.recycles:  # a slab is its tenant's: who has it can do this to it without vattd
                        for page_id in run.extent.page_ids:
                            other.held.pop(page_id, None)
        for loser in self.engines:
            if loser.session_id in answer.losers:
                loser.lose(claimed)
        self.remove(engine)

    @precondition(lambda self: self.server is not None)
    @rule()
    def the_grace_ends(self) -> None:
        self.up.recovery._grace_until_s = 0

    @precondition(lambda self: self.server is not None)
    @rule(data=st.data(), turns=st.integers(0, 4))
    def claim_twice(self, data: st.DataObject, turns: int) -> None:
        """Over two connections, since the answer to the first took too long: one of them is it."""
        engine = self.some(data, lambda engine: self.up.recovery.awaits(engine.session_id))
        if engine is None:
            return
        first = self.begin_claim(engine, turns)
        if self.up.recovery.awaits(engine.session_id):
            second = self.claim_of(engine)
            answers = self.loop.run_until_complete(asyncio.gather(first, second, return_exceptions=True))
            assert sum(isinstance(answer, SessionFenced) for answer in answers) == 1, answers
        self.took_in_claim(engine, self.loop.run_until_complete(first))

    @precondition(lambda self: self.server is not None)
    @rule(data=st.data(), turns=st.integers(0, 4))
    def die_while_claiming(self, data: st.DataObject, turns: int) -> None:
        engine = self.some(data, lambda engine: self.up.recovery.awaits(engine.session_id))
        if engine is None:
            return
        claim = self.begin_claim(engine, turns)
        self.remove(engine)
        with suppress(SessionFenced):  # it had ended before vattd looked at its claim
            self.loop.run_until_complete(claim)
        self.work()

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        engine = self.some(data, lambda engine: True)
        if engine is not None:
            self.remove(engine)

    def remove(self, engine: Engine) -> None:
        self.engines.remove(engine)
        self.free_unreachable()
        if self.server is not None:
            self.loop.run_until_complete(self.end_session(self.server, engine.session_id))
            self.work()
            self.free_unreachable()

    async def end_session(self, server: Server, session_id: str) -> None:
        server.pool.end_session(session_id, unmapped=False)
        server.recovery.ended(session_id)
        server.journal.drop(session_id)

    # What always holds

    @property
    def strays(self) -> int:
        """Who claims places of its tenant's slab where nothing is can write there all the same: vattd does not count
        that. On a GPU there is nothing to write to."""
        return MAX_PAGES if self.has_lied and not self.recycles else 0

    @invariant()
    def no_page_has_two_owners(self) -> None:
        held = [page_id for engine in self.engines for page_id in engine.held]
        assert len(held) == len(set(held))
        assert self.memory.issuperset(held), "memory was taken from under an engine"

    @invariant()
    def the_device_is_never_over_committed(self) -> None:
        assert len(self.memory) <= MAX_PAGES + self.strays

    @invariant()
    def the_ledger_knows_of_everything(self) -> None:
        if self.server is None:
            return
        snapshot = self.server.ledger.snapshot()
        assert sum(snapshot.pages_by_state.values()) == MAX_PAGES
        assert snapshot.backed_pages >= len(self.memory) - self.strays
        for engine in self.engines:
            if not self.server.recovery.awaits(engine.session_id):
                for run in runs_of(engine.held):
                    assert self.server.ledger.holds(engine.session_id, run), f"{engine} holds what it was not lent"

    def teardown(self) -> None:
        """When all have ended, all memory is the device's again, and a new vattd can lend all of it."""
        if not hasattr(self, "loop"):
            return
        if self.server is None:
            self.start()
        for engine in list(self.engines):
            self.remove(engine)
        self.work()
        counts = {state.value: count for state, count in self.up.ledger.snapshot().pages_by_state.items() if count}
        assert counts == {"unbacked": MAX_PAGES}, counts
        assert self.up.recovery.is_over
        self.crash()
        assert not self.memory
        self.loop.close()
        self.directory.cleanup()


TestRecovery = RecoveryMachine.TestCase
TestRecovery.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
