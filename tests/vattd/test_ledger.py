"""The ledger under random lives of tenants and sessions, against plain sets as the oracle."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from vatt.errors import InvalidRequest, LeaseCancelled, LimitExceeded, PoolExhausted, SessionUnknown, TenantDenied
from vatt.pages import Extent
from vatt.usage import Usage
from vattd.guarantee import Access, Guarantee
from vattd.ledger import Ledger
from vattd.page_map import draw
from vattd.page_run import PageRun
from vattd.scrub import Scrub
from vattd.snapshot import PageState
from vattd.stock import Stock
from vattd.tenants import MAX_TENANTS, MAX_TENANTS_PER_UID

MAX_PAGES = 40
PAGE_SIZE = 8  # so that random token bytes fill pages
TENANTS = ("a", "b", "c")
UID = 1000


def make_ledger(*, shares_zone: bool, max_pages: int = MAX_PAGES, scrub: Scrub = Scrub.CROSS_TENANT) -> Ledger:
    stock = Stock(max_pages, shares_zone=shares_zone, scrub=scrub)
    return Ledger(stock, page_size_bytes=PAGE_SIZE, incarnation=7)


def stock_up(ledger: Ledger, session_id: str, page_count: int) -> None:
    """Clean pages for a session's tenant."""
    for extent in ledger.stock.begin_create(ledger.shelf(session_id), page_count):
        ledger.stock.finish_create(extent, clean=True)


class LedgerMachine(RuleBasedStateMachine):
    """The oracle knows which pages each session holds, whose data each page last held (none: zeros or unbacked), and
    which pages were lent since they were made."""

    sessions: Bundle[str] = Bundle("sessions")
    old_runs: Bundle[PageRun] = Bundle("old_runs")

    @initialize(shares_zone=st.booleans(), scrub=st.sampled_from(Scrub))
    def start(self, shares_zone: bool, scrub: Scrub) -> None:
        self.ledger = make_ledger(shares_zone=shares_zone, scrub=scrub)
        self.held: dict[str, dict[int, int]] = {}  # session -> page id -> generation
        self.tenant_of: dict[str, str] = {}
        self.data_of: dict[int, str] = {}
        self.used: set[int] = set()
        self.recycled = 0
        self.usage: dict[str, Usage] = {}
        self.generations: set[int] = set()
        self.count = 0

    @rule(target=sessions, tenant=st.sampled_from(TENANTS))
    def attach(self, tenant: str) -> str:
        self.count += 1
        session_id = f"s{self.count}"
        self.ledger.open_session(session_id, tenant, UID)
        self.held[session_id], self.tenant_of[session_id], self.usage[session_id] = {}, tenant, Usage()
        return session_id

    @rule(target=old_runs, session_id=sessions, page_count=st.integers(1, 50), fewest=st.integers(1, 50))
    def lease(self, session_id: str, page_count: int, fewest: int) -> PageRun:
        fewest = min(fewest, page_count)
        self.count += 1
        before = self.ledger.snapshot()
        try:
            runs = self.ledger.lease(session_id, f"r{self.count}", page_count, fewest)
        except (PoolExhausted, LimitExceeded):
            assert self.ledger.snapshot() == before
            return PageRun(Extent(0, 1), 1)
        pages = [page_id for run in runs for page_id in run.extent.page_ids]
        assert fewest <= len(pages) <= page_count
        assert len(set(pages)) == len(pages)
        for page_id in pages:
            assert all(page_id not in other for other in self.held.values()), "lent twice"
            assert self.data_of.get(page_id) in self.data_it_may_get(session_id), "stale data"
            self.data_of[page_id] = self.tenant_of[session_id]
        self.recycled += len(self.used.intersection(pages))
        self.used.update(pages)
        assert runs[0].generation not in self.generations
        self.generations.add(runs[0].generation)
        self.held[session_id].update(dict.fromkeys(pages, runs[0].generation))
        assert self.ledger.lease(session_id, f"r{self.count}", page_count, fewest) == runs, "a repeat"
        if page_count % 5 == 0:
            for page_id in pages:
                del self.held[session_id][page_id]
            self.correct_usage(session_id)
            assert self.ledger.cancel(session_id, f"r{self.count}") == len(pages)
            with pytest.raises(LeaseCancelled):
                self.ledger.lease(session_id, f"r{self.count}", page_count, fewest)
        return runs[0]

    def data_it_may_get(self, session_id: str) -> set[str | None]:
        """Whose old bytes may be in a page that it leases. None: nobody's."""
        stock, tenant = self.ledger.stock, self.tenant_of[session_id]
        if stock.scrub is Scrub.ALWAYS:
            return {None}
        if stock.scrub is Scrub.CROSS_TENANT:
            return {None, tenant}
        others = TENANTS if stock.shares_zone else ()
        return {None, tenant, "unknown", *others}

    @rule(session_id=sessions, run=old_runs, skip=st.integers(0, 3))
    def give_back(self, session_id: str, run: PageRun, skip: int) -> None:
        """Any run by any session: only what it holds under that generation comes back, and only once."""
        extent = run.extent if skip >= run.extent.page_count else run.extent.split(run.extent.page_count - skip)[0]
        part = PageRun(extent, run.generation)
        held = self.held[session_id]
        mine = [page_id for page_id in extent.page_ids if held.get(page_id) == run.generation]
        assert self.ledger.holds(session_id, part) == (len(mine) == extent.page_count)
        assert self.ledger.give_back(session_id, [part]) == len(mine)
        for page_id in mine:
            del held[page_id]
        self.correct_usage(session_id)
        assert self.ledger.give_back(session_id, [part]) == 0

    @rule(session_id=consumes(sessions), unmapped=st.booleans())
    def end(self, session_id: str, unmapped: bool) -> None:
        assert self.ledger.end_session(session_id, unmapped=unmapped) == len(self.held.pop(session_id))
        del self.usage[session_id]
        with pytest.raises(SessionUnknown):
            self.ledger.end_session(session_id, unmapped=unmapped)

    @rule(session_id=sessions, page_count=st.integers(1, 20), fails=st.booleans(), clean=st.booleans())
    def create(self, session_id: str, page_count: int, fails: bool, clean: bool) -> None:
        stock = self.ledger.stock
        unbacked = stock.unbacked_pages
        extents = stock.begin_create(self.ledger.shelf(session_id), page_count)
        assert sum(extent.page_count for extent in extents) == min(page_count, unbacked)
        for extent in extents:
            self.used.difference_update(extent.page_ids)
            for page_id in extent.page_ids:
                self.data_of.pop(page_id, None)
                if not clean and not fails:
                    self.data_of[page_id] = "unknown"
            if fails:
                stock.fail_create(extent)
            else:
                stock.finish_create(extent, clean=clean)

    @rule(
        session_id=sessions,
        page_count=st.integers(1, 20),
        which=st.sampled_from(["own", "others", "returned"]),
        fails=st.booleans(),
    )
    def scrub(self, session_id: str, page_count: int, which: str, fails: bool) -> None:
        stock, shelf = self.ledger.stock, self.ledger.shelf(session_id)
        ready_pages = shelf.ready_pages
        if which == "returned":
            extents = stock.begin_scrub_returned(page_count)
        else:
            extents = stock.begin_scrub(shelf, page_count, others=which == "others")
        assert shelf.ready_pages == ready_pages, "what is ready needs no scrub"
        for extent in extents:
            if fails:
                self.ledger.stock.fail_scrub(extent)
                continue
            self.ledger.stock.finish_scrub(extent)
            for page_id in extent.page_ids:
                self.data_of.pop(page_id, None)

    @rule(session_id=sessions, page_count=st.integers(1, 20), kind=st.sampled_from(["quarantined", "for", "idle"]))
    def destroy(self, session_id: str, page_count: int, kind: str) -> None:
        stock = self.ledger.stock
        if kind == "quarantined":
            extents = stock.begin_destroy_quarantined(page_count)
        elif kind == "for":
            extents = stock.begin_destroy_for(self.ledger.shelf(session_id), page_count)
        else:
            extents = stock.begin_destroy_idle(page_count, among=self.ledger.idle_shelves())
        for extent in extents:
            assert not set(extent.page_ids) & set().union(*self.held.values()), "destroyed while it was lent"
            stock.finish_destroy(extent, retire=kind == "quarantined" and not stock.shares_zone)

    @rule(session_id=sessions, usage=st.builds(Usage, *[st.integers(0, 60)] * 5))
    def report(self, session_id: str, usage: Usage) -> None:
        if usage.mapped_pages > len(self.held[session_id]):
            before = self.ledger.snapshot()
            with pytest.raises(InvalidRequest):
                self.ledger.report_usage(session_id, usage)
            assert self.ledger.snapshot() == before
        else:
            self.ledger.report_usage(session_id, usage)
            self.usage[session_id] = usage

    def correct_usage(self, session_id: str) -> None:
        """A page that came back is not mapped, whatever the session said before."""
        held_pages, usage = len(self.held[session_id]), self.usage[session_id]
        if usage.mapped_pages > held_pages:
            token_bytes = min(usage.token_bytes, held_pages * PAGE_SIZE)
            self.usage[session_id] = replace(usage, mapped_pages=held_pages, token_bytes=token_bytes)

    @invariant()
    def every_page_is_in_one_state(self) -> None:
        if hasattr(self, "ledger"):
            counts = self.ledger.snapshot().pages_by_state
            assert sum(counts.values()) == MAX_PAGES
            assert min(counts.values()) >= 0
            assert counts[PageState.LEASED] == sum(len(pages) for pages in self.held.values())

    @invariant()
    def the_page_map_shows_every_page_once(self) -> None:
        if not hasattr(self, "ledger"):
            return
        snapshot = self.ledger.snapshot()
        by_page = draw(self.ledger.patches(), MAX_PAGES, MAX_PAGES)
        assert by_page.pages_per_cell == 1
        states = Counter(cell.owner.state for cell in by_page.cells)
        assert states == {state: count for state, count in snapshot.pages_by_state.items() if count}
        leased = Counter(cell.owner.tenant for cell in by_page.cells if cell.owner.state is PageState.LEASED)
        assert leased == {view.name: view.leased_pages for view in snapshot.tenants if view.leased_pages}
        rough = draw(self.ledger.patches(), MAX_PAGES, 7)
        assert len(rough.cells) <= 7
        assert sum(cell.total_pages for cell in rough.cells) == MAX_PAGES
        pages = [cell.owner for cell in by_page.cells]
        for number, cell in enumerate(rough.cells):
            inside = Counter(pages[number * rough.pages_per_cell : (number + 1) * rough.pages_per_cell])
            assert (inside.total(), inside[cell.owner]) == (cell.total_pages, cell.page_count)
            assert cell.page_count == max(inside.values())

    @invariant()
    def the_snapshot_agrees_with_itself(self) -> None:
        if hasattr(self, "ledger"):
            snapshot = self.ledger.snapshot()
            leased = snapshot.pages_by_state[PageState.LEASED]
            assert sum(session.leased_pages for session in snapshot.sessions) == leased
            assert sum(tenant.leased_pages for tenant in snapshot.tenants) == leased
            assert leased <= snapshot.peak_leased_pages
            assert snapshot.recycled_pages_total == self.recycled
            assert {s.session_id: s.leased_pages for s in snapshot.sessions} == {
                session_id: len(pages) for session_id, pages in self.held.items()
            }
            assert {session.session_id: session.usage for session in snapshot.sessions} == self.usage
            for tenant in snapshot.tenants:
                usages = [
                    self.usage[session.session_id] for session in snapshot.sessions if session.tenant == tenant.name
                ]
                assert tenant.usage == sum(usages, start=Usage())
            mapped = sum(tenant.usage.mapped_pages for tenant in snapshot.tenants)
            assert mapped <= min(leased, snapshot.peak_mapped_pages)


TestLedgerMachine = LedgerMachine.TestCase


@pytest.mark.parametrize("scrub", Scrub)
@pytest.mark.parametrize("shares_zone", [True, False])
def test_a_page_is_recycled_when_it_is_lent_again_without_being_made_anew(scrub: Scrub, shares_zone: bool) -> None:
    ledger, numbers = make_ledger(shares_zone=shares_zone, scrub=scrub), count()
    stock = ledger.stock
    for session_id, tenant in (("s", "a"), ("t", "b")):
        ledger.open_session(session_id, tenant, UID)

    def lend_and_take_back(session_id: str, page_count: int) -> int:
        """How many of them were recycled."""
        before = ledger.snapshot().recycled_pages_total
        runs = ledger.lease(session_id, f"r{next(numbers)}", page_count, page_count)
        ledger.give_back(session_id, runs)
        return ledger.snapshot().recycled_pages_total - before

    def zero(session_id: str) -> None:
        for extent in stock.begin_scrub(ledger.shelf(session_id), 8, others=True):
            stock.finish_scrub(extent)

    stock_up(ledger, "s", 8)
    assert lend_and_take_back("s", 4) == 0
    zero("s")
    assert lend_and_take_back("s", 8) == 4
    if shares_zone:
        zero("t")
        assert lend_and_take_back("t", 8) == 8
    zero("s")
    [*idle] = stock.begin_destroy_idle(8, among=ledger.shelves())
    assert sum(extent.page_count for extent in idle) == 8
    for extent in idle:
        stock.finish_destroy(extent, retire=False)
    stock_up(ledger, "s", 8)
    assert lend_and_take_back("s", 8) == 0, "these are other pages, by the same ids"


def test_a_tenant_belongs_to_the_user_that_first_named_it() -> None:
    ledger = make_ledger(shares_zone=True)
    ledger.open_session("s1", "a", 1000)
    with pytest.raises(TenantDenied, match="belongs to uid 1000"):
        ledger.open_session("s2", "a", 1001)
    assert len(ledger.snapshot().sessions) == 1


def test_a_lease_beyond_the_pool_is_refused_for_good() -> None:
    ledger = make_ledger(shares_zone=True)
    ledger.open_session("s1", "a", UID)
    with pytest.raises(LimitExceeded) as caught:
        ledger.lease("s1", "r", MAX_PAGES + 1, MAX_PAGES + 1)
    assert caught.value.limit_pages == MAX_PAGES


def test_an_absurdly_long_return_is_quick_and_returns_only_what_is_held() -> None:
    ledger = make_ledger(shares_zone=True)
    ledger.open_session("s1", "a", UID)
    stock_up(ledger, "s1", 4)
    [run] = ledger.lease("s1", "r", 4, 4)
    assert ledger.give_back("s1", [PageRun(Extent(0, 1 << 40), run.generation)]) == 4


def test_pages_of_a_dead_session_are_lent_to_nobody_before_they_are_destroyed() -> None:
    ledger = make_ledger(shares_zone=False)
    for session_id in ("s1", "s2"):
        ledger.open_session(session_id, "a", UID)
    stock_up(ledger, "s1", 4)
    ledger.lease("s1", "r", 4, 4)
    ledger.end_session("s1", unmapped=False)
    with pytest.raises(PoolExhausted):
        ledger.lease("s2", "r", 1, 1)
    [extent] = ledger.stock.begin_destroy_quarantined(100)
    ledger.stock.finish_destroy(extent, retire=True)
    [again] = ledger.stock.begin_create(ledger.shelf("s2"), 4)
    assert not set(again.page_ids) & set(extent.page_ids), "a forked child may still map the old place"


def test_without_a_shared_zone_each_tenant_gets_ids_of_its_own() -> None:
    ledger = make_ledger(shares_zone=False)
    ledger.open_session("s1", "a", UID)
    ledger.open_session("s2", "b", UID)
    stock_up(ledger, "s1", 2)
    stock_up(ledger, "s2", 2)
    zones = {ledger.lease(session_id, "r", 2, 2)[0].extent.zone for session_id in ("s1", "s2")}
    assert len(zones) == 2


def test_pages_made_ahead_go_to_the_first_tenant_that_comes() -> None:
    ledger = make_ledger(shares_zone=False)
    [extent] = ledger.stock.begin_create(None, 3)
    ledger.stock.finish_create(extent, clean=True)
    ledger.open_session("s1", "a", UID)
    assert ledger.lease("s1", "r", 3, 3)[0].extent == extent
    assert ledger.stock.begin_create(None, 3) == []


@pytest.mark.parametrize("incarnation", [-1, 1 << 31])
def test_an_incarnation_that_does_not_fit_a_generation_is_refused(incarnation: int) -> None:
    with pytest.raises(ValueError, match="not a ledger"):
        Ledger(Stock(1, shares_zone=True), page_size_bytes=4096, incarnation=incarnation)


def test_as_many_tenants_as_anybody_may_name_and_one_that_is_forgotten_makes_room() -> None:
    ledger = make_ledger(shares_zone=True)
    for number in range(MAX_TENANTS):
        ledger.open_session(f"s{number}", f"t{number}", number // MAX_TENANTS_PER_UID)
    with pytest.raises(InvalidRequest, match="4096 tenants already"):
        ledger.open_session("one", "more", 0)
    with pytest.raises(InvalidRequest, match="4096 tenants already"):
        ledger.configure("more", Guarantee(), Access(frozenset({0})))
    ledger.end_session("s7", unmapped=True)
    ledger.forget_empty_tenants()
    ledger.open_session("one", "more", 0)
    assert ledger.tenant("t7") is None


def test_one_user_names_only_so_many_tenants_and_those_with_a_guarantee_do_not_count() -> None:
    ledger = make_ledger(shares_zone=True)
    for number in range(MAX_TENANTS_PER_UID):
        ledger.open_session(f"s{number}", f"t{number}", 7)
    with pytest.raises(InvalidRequest, match="uid 7 has named 256 tenants already"):
        ledger.open_session("one", "more", 7)
    ledger.open_session("again", "t3", 7)
    ledger.open_session("another's", "more", 8)
    ledger.configure("t4", Guarantee(), Access(frozenset({7})))
    ledger.open_session("one", "another", 7)


def test_a_tenant_that_was_only_reserved_belongs_to_nobody_afterwards() -> None:
    ledger = make_ledger(shares_zone=True)
    ledger.configure("a", Guarantee(min_pages=1), Access(frozenset({5, 7})))
    ledger.unconfigure("a")
    ledger.open_session("s", "a", 9)
    with pytest.raises(TenantDenied, match="belongs to uid 9"):
        ledger.open_session("t", "a", 5)
