"""What a pool decides at each turn: whom it lends to, what is to be made for it, and whom it asks for pages back.

Pure: time is an argument, and what it decides others carry out: `vattd.pool` on an event loop, the random worlds in
tests/vattd/policy_world.py in virtual time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from vatt.errors import (
    Draining,
    InvalidRequest,
    LeaseCancelled,
    PoolExhausted,
    SessionEvicted,
    SessionFenced,
    SessionUnknown,
    SystemLimit,
    VattError,
)
from vatt.pages import page_count_of
from vattd.guarantee import Access, Guarantee
from vattd.ledger import Ledger
from vattd.page_notes import NoNotes, PageNotes
from vattd.page_run import PageRun
from vattd.policy import Policy
from vattd.pressure import Pressure, Review
from vattd.tenants import Tenant
from vattd.upkeep import Upkeep
from vattd.wish import Purpose, Waiting, Wish
from vattd.workshop import Slice, Workshop

# An engine has a handful of leases under way; what waits takes memory, and its tenant's turn.
MAX_WAITING_OF_SESSION = 256
MAX_WAITING_OF_TENANT = 4096

Answer = tuple[PageRun, ...] | VattError


class Lending:
    """Brings wishes, the ledger and those who work for it together. Belongs to the event loop.

    A turn is `serve`, `next_slice`, `review`, in this order; it is to be taken after whatever is done here, after each
    slice, and at `next_change_s`.
    """

    def __init__(
        self,
        ledger: Ledger,
        policy: Policy,
        pressure: Pressure,
        workshop: Workshop,
        upkeep: Upkeep,
        answer: Callable[[Waiting, Answer], None],
        notes: PageNotes | None = None,
    ) -> None:
        """`answer` is told what becomes of each wish that was taken in, once."""
        self._notes = notes or NoNotes()
        self._ledger, self._policy, self._pressure = ledger, policy, pressure
        self._workshop, self._upkeep = workshop, upkeep
        self._tell = answer
        self.is_draining = False

    # What sessions do

    def take_in(self, wish: Wish, now_s: float) -> Waiting:
        """A new wish. Raises what it is refused with at once."""
        tenant = self._ledger.tenant_of(wish.session_id)
        self._upkeep.tend(tenant)
        wishes = self._policy.wishes
        if self.is_draining and wish.purpose is not Purpose.GROW:
            raise Draining("an operator has this vattd drained: no new requests until `vattctl drain --resume`")
        if wishes.count_of_session(wish.session_id) >= MAX_WAITING_OF_SESSION:
            raise InvalidRequest(f"{MAX_WAITING_OF_SESSION} leases of this session wait already")
        if wishes.count_of_tenant(tenant) >= MAX_WAITING_OF_TENANT:
            raise InvalidRequest(f"{MAX_WAITING_OF_TENANT} leases of tenant {tenant.name} wait already")
        try:
            return self._policy.add(wish, tenant, now_s)
        except PoolExhausted as error:
            raise self._shortage_or(error) from error

    def open_session(self, session_id: str, tenant: str, uid: int, gids: Iterable[int] = ()) -> None:
        """Raises TenantDenied, InvalidRequest, Draining."""
        if self.is_draining:
            raise Draining("an operator has this vattd drained: no new sessions until `vattctl drain --resume`")
        self._ledger.open_session(session_id, tenant, uid, gids)
        self._upkeep.tend(self._ledger.tenant_of(session_id))  # its headroom

    def give_back(self, session_id: str, runs: Iterable[PageRun]) -> int:
        """Returns how many pages came."""
        returned = self._ledger.give_back(session_id, runs)
        self._note_fewer(session_id, returned)
        self._pressure.reclaims.returned(session_id, returned)
        return returned

    def cancel(self, session_id: str, request_id: str) -> int:
        """Returns how many pages came."""
        returned = self._ledger.cancel(session_id, request_id)
        self._note_fewer(session_id, returned)
        self._pressure.reclaims.returned(session_id, returned)
        entry = self._policy.wishes.find((session_id, request_id))
        if entry is not None:
            self._answer(entry, LeaseCancelled("cancelled"))
        return returned

    def drop(self, entry: Waiting) -> None:
        """Nobody waits for its answer any more."""
        self._answer(entry, LeaseCancelled("the caller stopped waiting"))

    def fence(self, session_id: str) -> None:
        """The session gets no new pages: what it waits for is refused."""
        self._answer_all_of(session_id, SessionFenced("the session's stream broke while it waited; re-attach"))

    def end_session(self, session_id: str, *, unmapped: bool) -> int:
        """Returns how many pages it held."""
        held = self._ledger.end_session(session_id, unmapped=unmapped)
        self._pressure.session_ended(session_id)
        self._answer_all_of(session_id, SessionUnknown("the session has ended"))
        return held

    # What operators do

    def configure(self, name: str, guarantee: Guarantee, access: Access) -> None:
        """Set a tenant's guarantee and who may use it; all mins fit the pool. Raises InvalidRequest."""
        self._ledger.configure(name, guarantee, access)
        self._reconsider(name)

    def unconfigure(self, name: str) -> None:
        self._ledger.unconfigure(name)
        self._reconsider(name)

    def drain(self) -> None:
        """Begin nothing new: refuse ADMITs, those that wait too, and new sessions; ask for what is idle."""
        self.is_draining = True
        self._answer_all(lambda wish: wish.purpose is Purpose.ADMIT, Draining("an operator has this vattd drained"))
        self._pressure.drain()

    def resume(self) -> None:
        self.is_draining = False
        self._pressure.end_drain()

    def evict(self, session_id: str) -> None:
        """Ask the session for all its pages, and answer what it waits for."""
        self._pressure.ask_to_leave(session_id)
        self._answer_all_of(session_id, SessionEvicted("an operator asked this session to leave"))

    def refuse_all(self, refusal: VattError) -> None:
        """Nothing is lent any more."""
        self._answer_all(lambda _: True, refusal)

    # A turn

    def serve(self, now_s: float) -> None:
        """Award what policy allows, refuse those whose time is over, and grant what is ready."""
        while refused := self._policy.award(now_s):
            for entry, error in refused:
                self._answer(entry, self._shortage_or(error))
        for entry in self._policy.wishes.awarded:
            if self._ledger.shelf(entry.wish.session_id).ready_pages >= entry.awarded_pages:
                self._grant(entry, entry.awarded_pages, now_s)

    def next_slice(self, now_s: float) -> Slice | None:
        """What to do next: for the leases that were awarded pages, then for the pool."""
        wishes = self._policy.wishes
        for entry in wishes.awarded:
            shelf, wish = self._ledger.shelf(entry.wish.session_id), entry.wish
            work = self._workshop.slice_for(shelf, entry.awarded_pages - shelf.ready_pages, now_s)
            if work is not None:
                return work
            # They cannot be made now.
            if wish.may_wait(now_s):
                self._policy.postpone(entry)
            elif shelf.ready_pages >= wish.min_page_count:
                self._grant(entry, min(shelf.ready_pages, entry.awarded_pages), now_s)
            else:
                self._answer(entry, self._shortage_or(PoolExhausted(wish.min_page_count, shelf.ready_pages)))
        wanted = self._ledger.shelf(wishes.first.wish.session_id) if wishes.first is not None else None
        return self._upkeep.next_slice(wanted, now_s)

    def review(self, now_s: float) -> Review:
        """Whom to tell what, whose silence to note, whom to kill."""
        return self._pressure.review(now_s)

    def next_change_s(self, now_s: float) -> float | None:
        """When there is something to do without anything happening: a wish's time is over, say, or memory may be asked
        for again. `now_s` is when the last turn was taken."""
        retry_s = self._workshop.retry_s if self._workshop.shortage is not None else None
        times_s = [self._policy.next_change_s(now_s), self._pressure.next_change_s(now_s), retry_s]
        times_s.append(self._upkeep.next_change_s())
        return min((time_s for time_s in times_s if time_s is not None and time_s > now_s), default=None)

    # Inside

    def _reconsider(self, name: str) -> None:
        """A guarantee is another now: what waits may have become possible, or impossible."""
        for entry, error in self._policy.recheck():
            self._answer(entry, error)
        tenant: Tenant | None = self._ledger.tenant(name)
        if tenant is not None:
            self._upkeep.tend(tenant)

    def _grant(self, entry: Waiting, page_count: int, now_s: float) -> None:
        wish = entry.wish
        try:
            self._notes.held(wish.session_id, self._ledger.noted_pages(wish.session_id) + page_count)
            runs = self._ledger.lease(wish.session_id, wish.request_id, page_count, wish.min_page_count)
        except VattError as error:
            self._answer(entry, error)
            return
        tally = self._ledger.tenant_of(wish.session_id).tally
        tally.grant(wish.purpose, page_count_of(run.extent for run in runs), now_s - entry.since_s)
        self._answer(entry, runs)

    def _note_fewer(self, session_id: str, returned_pages: int) -> None:
        """Too many are noted where this fails, and that does no harm."""
        if returned_pages:
            with suppress(SystemLimit):
                self._notes.held(session_id, self._ledger.noted_pages(session_id))

    def _answer(self, entry: Waiting, answer: Answer) -> None:
        self._policy.remove(entry)
        self._tell(entry, answer)

    def _answer_all_of(self, session_id: str, error: VattError) -> None:
        if self._policy.wishes.count_of_session(session_id):
            self._answer_all(lambda wish: wish.session_id == session_id, error)

    def _answer_all(self, chosen: Callable[[Wish], bool], error: VattError) -> None:
        for entry in self._policy.wishes:
            if chosen(entry.wish):
                self._answer(entry, error)

    def _shortage_or(self, error: VattError) -> VattError:
        """Where pages are short because the device is, that is what to say; but not of what could never be had."""
        is_device = type(error) is PoolExhausted and self._ledger.stock.unbacked_pages
        return (self._workshop.shortage or error) if is_device else error
