"""The ledger: which session holds which page.

Pure: it knows no driver, clock, socket or log. One event loop writes it. What is not lent is in its `stock`.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from vatt.errors import InvalidRequest, LeaseCancelled, LimitExceeded, PoolExhausted, SessionUnknown
from vatt.pages import ZONE_PAGES, LedgerBug, extents_of
from vatt.protocol import GENERATION_BITS
from vatt.usage import Usage, total_of
from vattd.claims import Claims, parse_claims
from vattd.guarantee import NO_GUARANTEE, Access, Guarantee
from vattd.page_map import Owner, Patch
from vattd.page_run import PageRun, runs_of
from vattd.shelf import Shelf
from vattd.snapshot import PageState, SessionView, Snapshot, TenantView
from vattd.stock import Stock
from vattd.tenants import Tenant, Tenants

# A repeated lease is answered from memory for this many leases of its session; a retry comes within one or two.
REMEMBERED_LEASES = 512


@dataclass(slots=True, eq=False)
class _Session:
    session_id: str
    tenant: Tenant
    generations: dict[int, int] = field(default_factory=dict)  # page id -> generation, for every page it holds
    unclaimed_pages: int = 0  # an earlier vattd's, which it holds without having said which they are
    leases: OrderedDict[str, tuple[PageRun, ...] | None] = field(default_factory=OrderedDict)  # None: cancelled
    usage: Usage = field(default_factory=Usage)  # its last word

    @property
    def held_pages(self) -> int:
        return len(self.generations) + self.unclaimed_pages


@dataclass(frozen=True, slots=True)
class Claimed:
    """What became of a session's claims."""

    runs: tuple[PageRun, ...]  # its own
    left_pages: int  # what it was lent and did not claim
    refused: tuple[PageRun, ...]  # another's claims too
    losers: frozenset[str]  # the sessions that thereby lost pages that they had claimed


class Ledger:
    """Which session holds which page.

    Invariants, which the state machine in tests/vattd/test_ledger.py checks:
    - every page is in exactly one state, and the states' counts sum to the pool's limit;
    - a page is held by at most one session, under a generation that was never used before;
    - only clean pages, or dirty ones of the same tenant, are granted;
    - an operation that raises has changed nothing.
    """

    def __init__(self, stock: Stock, *, page_size_bytes: int, incarnation: int) -> None:
        if page_size_bytes < 1 or stock.max_pages < 1 or not 0 <= incarnation < 1 << 31:
            raise ValueError(f"not a ledger: {page_size_bytes=} {stock.max_pages=} {incarnation=}")
        self.stock = stock
        self.page_size_bytes = page_size_bytes
        # The next vattd's generations begin later: 2**32 leases take longer than the second between incarnations.
        self._next_generation = self._first_generation = incarnation << GENERATION_BITS
        self._tenants = Tenants(stock)
        self._sessions: dict[str, _Session] = {}
        self._claims = Claims()
        self._mapped_pages = 0
        self._peak_leased_pages = 0
        self._peak_mapped_pages = 0

    def configure(self, name: str, guarantee: Guarantee, access: Access) -> None:
        """Set a tenant's guarantee and who may use it, whether it is there already or not; all mins fit the pool.

        Raises InvalidRequest if there are too many tenants. Sessions stay, whoever may use the tenant from now on.
        """
        self._tenants.set(self._tenants.find_or_open(name), guarantee, access)

    def unconfigure(self, name: str) -> None:
        """The tenant has no guarantee any more, and belongs to whom it belonged to."""
        tenant = self._tenants.get(name)
        if tenant is not None:
            self._tenants.set(tenant, NO_GUARANTEE, None)

    @property
    def attached_count(self) -> int:
        """How many tenants have a session."""
        return self._tenants.attached_count

    def tenant(self, name: str) -> Tenant | None:
        return self._tenants.get(name)

    def tenants(self) -> Iterable[Tenant]:
        """In the order of a snapshot's."""
        return self._tenants

    def open_session(self, session_id: str, tenant: str, uid: int, gids: Iterable[int] = ()) -> None:
        """Raises TenantDenied if the user may not use the tenant, InvalidRequest if there are too many tenants."""
        if session_id in self._sessions:
            raise LedgerBug(f"session {session_id} is open already")
        self.check_access(tenant, uid, gids)
        found = self._tenants.find_or_open(tenant, uid)
        self._tenants.join(found, uid)
        self._sessions[session_id] = _Session(session_id, found)

    def check_access(self, tenant: str, uid: int, gids: Iterable[int]) -> None:
        """Raises TenantDenied if the user may not use the tenant."""
        self._tenants.check_access(tenant, uid, gids)

    def restore_session(self, session_id: str, tenant: str, uid: int, page_count: int) -> None:
        """A session of an earlier vattd's, that holds so many pages whatever may be lent now.

        Raises InvalidRequest if there are too many tenants, or the pool is too small.
        """
        found = self._tenants.find_or_open(tenant)
        self.stock.inherit_lent(found.shelf, page_count)
        self._tenants.join(found, uid)
        self._sessions[session_id] = _Session(session_id, found, unclaimed_pages=page_count)
        self._note_peak()

    def claim(self, session_id: str, runs: Iterable[PageRun], *, final: bool) -> Claimed:
        """A restored session says which pages it holds; those that it does not name are its own no more.

        Pages that another session claims as well are nobody's from now on; with `final` they stay with who came first.
        Of more pages than are noted for it, the last are refused.
        Raises InvalidRequest for what cannot be, and nothing has changed.
        """
        session = self._session(session_id)
        generation_of = parse_claims(runs, session.unclaimed_pages + self.stock.max_pages)
        for page_id, generation in generation_of.items():
            if generation >= self._first_generation or self.stock.owns(page_id // ZONE_PAGES):
                raise InvalidRequest(f"page {page_id} under generation {generation} is not an earlier vattd's")
        excess = {page_id: generation_of.pop(page_id) for page_id in list(generation_of)[session.unclaimed_pages :]}
        claims = self._claims.sort_out(session_id, generation_of, final=final)
        for extent in extents_of(claims.own):
            self.stock.old_zones.name(extent)
        session.generations.update(claims.own)
        for loser_id, page_ids in claims.lost.items():
            loser = self._session(loser_id)
            for page_id in page_ids:
                del loser.generations[page_id]
            self.stock.dispute(loser.tenant.shelf, extents_of(page_ids))
        left = session.unclaimed_pages - len(claims.own)
        session.unclaimed_pages = 0
        self.stock.leave(session.tenant.shelf, left)
        return Claimed(runs_of(claims.own), left, runs_of({**claims.refused, **excess}), frozenset(claims.lost))

    def end_session(self, session_id: str, *, unmapped: bool) -> int:
        """Forget a session. Returns how many pages it held.

        `unmapped` is the session's own word that nothing maps its pages. Without it (the process died) they are
        quarantined until they are destroyed.
        """
        session = self._session(session_id)
        held = extents_of(session.generations)
        if unmapped:
            self.stock.take_back(session.tenant.shelf, held)
        else:
            self.stock.quarantine(session.tenant.shelf, held)
        self.stock.leave(session.tenant.shelf, session.unclaimed_pages)
        self._claims.gave_back(session.generations)
        self.stock.end_dispute(extents_of(self._claims.session_ended(session_id)))
        self._mapped_pages -= session.usage.mapped_pages
        self._tenants.leave(session.tenant)
        del self._sessions[session_id]
        return session.held_pages

    def lease(self, session_id: str, request_id: str, page_count: int, min_page_count: int) -> tuple[PageRun, ...]:
        """Lend as many pages as are ready, between `min_page_count` and `page_count`, in as few runs as can be.

        A repeat of `request_id` returns the first answer, less what came back since.
        Raises LimitExceeded, LeaseCancelled, or PoolExhausted, and lends none.
        """
        session = self._session(session_id)
        if request_id in session.leases:
            return self._repeat(session, request_id)
        if not 1 <= min_page_count <= page_count:
            raise LedgerBug(f"not a lease: {page_count=} {min_page_count=}")
        tenant, shelf = session.tenant, session.tenant.shelf
        limit = min(tenant.guarantee.max_pages or self.stock.max_pages, self.stock.max_pages)
        if min_page_count > limit:
            raise LimitExceeded(min_page_count, limit)
        if shelf.ready_pages < min_page_count:
            raise PoolExhausted(min_page_count, shelf.ready_pages)
        generation = self._next_generation
        self._next_generation += 1
        extents = self.stock.lend(shelf, min(page_count, shelf.ready_pages))
        for extent in extents:
            session.generations.update(dict.fromkeys(extent.page_ids, generation))
        self._note_peak()
        runs = tuple(PageRun(extent, generation) for extent in extents)
        self._remember(session, request_id, runs)
        return runs

    def _note_peak(self) -> None:
        self._peak_leased_pages = max(self._peak_leased_pages, self.stock.lent_pages)

    def cancel(self, session_id: str, request_id: str) -> int:
        """Take back what `request_id` was granted, and refuse it if it comes later. Returns how many pages came."""
        session = self._session(session_id)
        granted = session.leases.get(request_id)
        returned = self.give_back(session_id, granted) if granted else 0
        self._remember(session, request_id, None)
        return returned

    def give_back(self, session_id: str, runs: Iterable[PageRun]) -> int:
        """Take back pages, passing over those not held under the run's generation. Returns how many pages came."""
        session = self._session(session_id)
        returned = 0
        for run in runs:
            held = _held(session, run)
            for page_id in held:
                del session.generations[page_id]
            self._claims.gave_back(held)
            self.stock.take_back(session.tenant.shelf, extents_of(held))
            returned += len(held)
        held_pages = len(session.generations)
        if session.usage.mapped_pages > held_pages:  # its last word is from before it unmapped
            token_bytes = min(session.usage.token_bytes, held_pages * self.page_size_bytes)
            self.report_usage(session_id, replace(session.usage, mapped_pages=held_pages, token_bytes=token_bytes))
        return returned

    def report_usage(self, session_id: str, usage: Usage) -> None:
        """Keep the session's word in place of its last one.

        Raises InvalidRequest if more pages are said to be mapped than are held.
        """
        session = self._session(session_id)
        if usage.mapped_pages > len(session.generations):
            raise InvalidRequest(f"{usage.mapped_pages} pages mapped, but {len(session.generations)} are leased")
        self._mapped_pages += usage.mapped_pages - session.usage.mapped_pages
        self._peak_mapped_pages = max(self._peak_mapped_pages, self._mapped_pages)
        session.usage = usage

    def noted_pages(self, session_id: str) -> int:
        """What the next vattd has to count for this session: also what it claims in dispute, as others do."""
        return self._session(session_id).held_pages + self._claims.disputed_by(session_id)

    def holds(self, session_id: str, run: PageRun) -> bool:
        """Does the session hold every page of the run, under its generation?"""
        return len(_held(self._session(session_id), run)) == run.extent.page_count

    def remembers(self, session_id: str, request_id: str) -> bool:
        """Was this request answered, or cancelled, already?"""
        return request_id in self._session(session_id).leases

    @property
    def disputed_pages(self) -> int:
        """That two sessions claim."""
        return self._claims.disputed_pages

    @property
    def disputed_total(self) -> int:
        """That ever were claimed by two."""
        return self._claims.disputed_total

    # As policy sees it

    @property
    def capacity_pages(self) -> int:
        return self.stock.capacity_pages

    @property
    def max_pages(self) -> int:
        return self.stock.max_pages

    @property
    def limit_pages(self) -> int:
        return self.stock.limit_pages

    @property
    def lent_pages(self) -> int:
        return self.stock.lent_pages

    @property
    def promised_pages(self) -> int:
        """The sum of all mins."""
        return self._tenants.promised_pages

    def promised(self) -> Iterable[Tenant]:
        """Tenants with a min."""
        return self._tenants.promised.values()

    def limited(self) -> Iterable[Tenant]:
        """Tenants with a max."""
        return self._tenants.limited.values()

    def holding(self) -> Iterable[Tenant]:
        """Tenants that hold pages."""
        return [tenant for tenant in self._tenants if tenant.held_pages]

    def tenant_of(self, session_id: str) -> Tenant:
        return self._session(session_id).tenant

    def find_tenant_of(self, session_id: str) -> Tenant | None:
        """None: the session has ended."""
        session = self._sessions.get(session_id)
        return None if session is None else session.tenant

    # Shelves

    def shelf(self, session_id: str) -> Shelf:
        return self._session(session_id).tenant.shelf

    def shelves(self) -> list[Shelf]:
        return [tenant.shelf for tenant in self._tenants]

    def idle_shelves(self) -> list[Shelf]:
        """Those of tenants without one."""
        return [tenant.shelf for tenant in self._tenants.sessionless.values()]

    def forget_empty_tenants(self) -> list[int]:
        """Forget tenants without a session, a page and a guarantee. Returns the zones that nothing is left of."""
        return [*self._tenants.forget_empty(), *self.stock.old_zones.take_ended()]

    def snapshot(self) -> Snapshot:
        sessions = tuple(self.session_views())
        usages: defaultdict[str, list[Usage]] = defaultdict(list)
        for view in sessions:
            usages[view.tenant].append(view.usage)
        return Snapshot(
            page_size_bytes=self.page_size_bytes,
            max_pages=self.stock.max_pages,
            pages_by_state=self.stock.pages_by_state,
            peak_leased_pages=self._peak_leased_pages,
            peak_mapped_pages=self._peak_mapped_pages,
            created_pages_total=self.stock.created_total,
            scrubbed_pages_total=self.stock.scrubbed_total,
            destroyed_pages_total=self.stock.destroyed_total,
            recycled_pages_total=self.stock.recycled_total,
            tenants=tuple(
                TenantView(
                    name=tenant.name,
                    owner_uid=tenant.owner_uid,
                    access=tenant.access,
                    guarantee=tenant.guarantee,
                    session_count=tenant.session_count,
                    leased_pages=tenant.held_pages,
                    usage=total_of(usages[tenant.name]),
                    tally=tenant.tally.copy(),
                )
                for tenant in self._tenants
            ),
            sessions=sessions,
        )

    def session_views(self) -> Iterator[SessionView]:
        for session in self._sessions.values():
            yield SessionView(session.session_id, session.tenant.name, session.held_pages, session.usage)

    def patches(self) -> Iterator[Patch]:
        """All pages with memory by owner, for a page map. What it takes grows with the pages that are lent."""
        names = {id(tenant.shelf): tenant.name for tenant in self._tenants}
        for session in self._sessions.values():
            owner = Owner(PageState.LEASED, session.tenant.name)
            yield Patch(owner, page_ids=list(session.generations), unnamed_pages=session.unclaimed_pages)
        for state, shelf, extents in self.stock.idle_extents():
            yield Patch(Owner(state, names[id(shelf)] if shelf is not None else ""), extents)
        yield Patch(Owner(PageState.QUARANTINED), unnamed_pages=self.stock.left_pages)

    def _session(self, session_id: str) -> _Session:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise SessionUnknown(f"no session {session_id!r}: attach again") from None

    def _repeat(self, session: _Session, request_id: str) -> tuple[PageRun, ...]:
        runs = session.leases[request_id]
        if runs is None:
            raise LeaseCancelled(f"lease {request_id!r} was cancelled")
        return tuple(PageRun(extent, run.generation) for run in runs for extent in extents_of(_held(session, run)))

    def _remember(self, session: _Session, request_id: str, runs: tuple[PageRun, ...] | None) -> None:
        session.leases[request_id] = runs
        session.leases.move_to_end(request_id)
        while len(session.leases) > REMEMBERED_LEASES:
            session.leases.popitem(last=False)


def _held(session: _Session, run: PageRun) -> list[int]:
    """The pages of the run that the session holds under its generation; the shorter of both is gone through."""
    generations, page_ids = session.generations, run.extent.page_ids
    if len(page_ids) > len(generations):
        return [page_id for page_id, held in generations.items() if page_id in page_ids and held == run.generation]
    return [page_id for page_id in page_ids if generations.get(page_id) == run.generation]
