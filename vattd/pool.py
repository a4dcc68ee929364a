"""The pool: lends what policy allows and is ready, has the workshop make what is not, and asks sessions for pages back.

One task does all that takes time, a slice after the other; between two slices the ledger is true, and leases are
served. So nothing here needs a lock, and a request that finds pages ready never waits for the driver.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TypeVar

from vatt.errors import (
    DeviceLost,
    Draining,
    InvalidRequest,
    LeaseCancelled,
    PageNotHeld,
    PoolExhausted,
    SessionEvicted,
    SessionFenced,
    SessionUnknown,
    VattError,
)
from vatt.usage import Usage
from vattd.driver_thread import DriverThread, Urgency
from vattd.engines import Engines, NoEngines
from vattd.guarantee import Access, Guarantee
from vattd.ledger import Ledger, PageRun, Tenant
from vattd.policy import Policy
from vattd.pressure import Pressure
from vattd.reclaim import Reason, Reclaims
from vattd.rules import PoolLimits, PoolRules
from vattd.upkeep import Upkeep
from vattd.wish import Purpose, Waiting, Wish
from vattd.workshop import Slice, Workshop
from vattention.vmm.driver import DeviceMemory, PhysicalDriver

log = logging.getLogger(__name__)

T = TypeVar("T")

# A wish costs a little at every turn; an engine has a handful under way.
MAX_WAITING_LEASES = 256


@dataclass(slots=True)
class _Answer:
    """What a waiting wish will be told, and how many calls listen: a repeated request waits for the same answer."""

    entry: Waiting
    future: asyncio.Future[tuple[PageRun, ...]]
    listeners: int = 0


class Pool:
    """Pages for sessions. All methods belong to the event loop.

    `on_broken` is told once of an error after which nothing may be lent any more: a lost device, or a bug of ours.
    """

    def __init__(
        self,
        ledger: Ledger,
        driver: PhysicalDriver,
        thread: DriverThread,
        limits: PoolLimits,
        on_broken: Callable[[BaseException], None],
        rules: PoolRules | None = None,
    ) -> None:
        rules = rules or PoolRules()
        self.ledger, self.limits = ledger, limits
        self.engines: Engines = NoEngines()
        self.draining = False
        self._stock, self._driver, self._thread = ledger.stock, driver, thread
        self._on_broken = on_broken
        self._workshop = Workshop(self._stock, driver, thread)
        self._upkeep = Upkeep(
            ledger,
            self._workshop,
            min_pages=limits.min_bytes // ledger.page_size_bytes,
            headroom_pages=limits.headroom_bytes // ledger.page_size_bytes,
            idle_after_s=rules.idle_after_s,
        )
        self.policy = Policy(ledger, rules.timing)
        reclaims = Reclaims(rules.reclaim_within_s, rules.kill_after_s)
        self.pressure = Pressure(ledger, self.policy, reclaims, lambda session_id: self.engines.listens(session_id))
        self._answers: dict[tuple[str, str], _Answer] = {}
        self._changed = asyncio.Event()
        self._calm = asyncio.Event()  # nobody is expected to give back what an operator asked for
        self._refusal: VattError | None = None  # set when nothing is lent any more

    # What sessions ask for

    async def lease(self, wish: Wish) -> tuple[PageRun, ...]:
        """Pages for a session; waits for them as `wish` allows. Raises the errors of LeasePages in vatt.proto."""
        if self._refusal is not None:
            raise self._refusal
        tenant = self.ledger.tenant_of(wish.session_id)
        self._changed.set()  # whatever becomes of it: pages may have to be made, or asked back
        if self.ledger.remembers(wish.session_id, wish.request_id):
            return self.ledger.lease(wish.session_id, wish.request_id, wish.page_count, wish.min_page_count)
        self._upkeep.tend(tenant)
        answer = self._answers.get(wish.key) or self._take_in(wish, tenant)
        answer.listeners += 1
        try:
            return await asyncio.shield(answer.future)
        finally:
            answer.listeners -= 1
            if not answer.listeners and not answer.future.done():  # its callers have gone away
                self._answer(answer.entry, LeaseCancelled("the caller stopped waiting"))

    def _take_in(self, wish: Wish, tenant: Tenant) -> _Answer:
        """Queue a new wish, and serve it at once if that can be. Raises what it is refused with at once."""
        if self.draining and wish.purpose is Purpose.ADMIT:
            raise Draining("an operator has this vattd drained: no new requests until `vattctl drain --resume`")
        if self.policy.count_of(wish.session_id) >= MAX_WAITING_LEASES:
            raise InvalidRequest(f"{MAX_WAITING_LEASES} leases of this session wait already")
        now_s = self._now()
        try:
            entry = self.policy.add(wish, tenant, now_s)
        except PoolExhausted as error:
            raise self._shortage_or(error) from error
        answer = _Answer(entry, asyncio.get_running_loop().create_future())
        self._answers[wish.key] = answer
        self._serve(now_s)
        return answer

    def open_session(self, session_id: str, tenant: str, uid: int, gids: Iterable[int] = ()) -> None:
        """Raises TenantDenied, InvalidRequest, Draining."""
        if self.draining:
            raise Draining("an operator has this vattd drained: no new sessions until `vattctl drain --resume`")
        self.ledger.open_session(session_id, tenant, uid, gids)
        self._tend(self.ledger.tenant_of(session_id))  # its headroom

    def cancel(self, session_id: str, request_id: str) -> int:
        returned = self.ledger.cancel(session_id, request_id)
        self.pressure.reclaims.returned(session_id, returned)
        self._answer_all(lambda wish: wish.key == (session_id, request_id), LeaseCancelled("cancelled"))
        self._changed.set()
        return returned

    def give_back(self, session_id: str, runs: Iterable[PageRun]) -> int:
        returned = self.ledger.give_back(session_id, runs)
        self.pressure.reclaims.returned(session_id, returned)
        self._changed.set()
        return returned

    def report_usage(self, session_id: str, usage: Usage) -> None:
        """Raises InvalidRequest. What is idle now may be asked for by who waits."""
        self.ledger.report_usage(session_id, usage)
        if self.policy.has_queue:
            self._changed.set()

    def answer_reclaim(self, session_id: str, reclaim_id: int) -> None:
        """The session gave back what it could."""
        self.pressure.reclaims.answered(session_id, reclaim_id, self._now())
        self._changed.set()

    def ask_again(self, session_id: str) -> None:
        """The session can be told again what is wanted of it."""
        self.pressure.reclaims.tell_again(session_id)
        self._changed.set()

    def end_session(self, session_id: str, *, unmapped: bool) -> int:
        held = self.ledger.end_session(session_id, unmapped=unmapped)
        self.pressure.session_ended(session_id)
        self._answer_all(lambda wish: wish.session_id == session_id, SessionUnknown("the session has ended"))
        self._changed.set()
        return held

    # What operators ask for

    def configure(self, name: str, guarantee: Guarantee, access: Access) -> None:
        """Set a tenant's guarantee and who may use it; all mins fit the pool. Raises InvalidRequest."""
        self.ledger.configure(name, guarantee, access)
        self._reconsider(name)

    def unconfigure(self, name: str) -> None:
        self.ledger.unconfigure(name)
        self._reconsider(name)

    def drain(self) -> None:
        """Begin nothing new: refuse ADMITs, those that wait too, and new sessions; ask for what is idle."""
        self.draining = True
        self._answer_all(lambda wish: wish.purpose is Purpose.ADMIT, Draining("an operator has this vattd drained"))
        self.pressure.drain()
        self._changed.set()

    def resume(self) -> None:
        self.draining = False
        self.pressure.end_drain()
        self._changed.set()

    async def shrink(self) -> int:
        """Give all idle memory back to the device, but for the pool's minimum and hard mins. Returns the page count."""
        before = self._stock.destroyed_total
        shrunk = asyncio.Event()
        self._upkeep.shrink(shrunk.set)
        self._changed.set()
        await shrunk.wait()
        return self._stock.destroyed_total - before

    async def ask_idle_back(self, wait_s: float) -> None:
        """Ask every session for what it does not use, and wait until all have answered, or for so long."""
        self.pressure.ask_all(self._now())
        self._calm.clear()
        self._changed.set()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._calm.wait(), wait_s)

    def evict(self, session_id: str) -> None:
        """Ask the session for all its pages, and answer what it waits for."""
        self.pressure.ask_to_leave(session_id)
        error = SessionEvicted("an operator asked this session to leave")
        self._answer_all(lambda wish: wish.session_id == session_id, error)
        self._changed.set()

    async def export(self, session_id: str, runs: list[PageRun]) -> list[int]:
        """New file descriptors for pages the session holds, in order; the caller closes them. Raises PageNotHeld."""
        self._check_held(session_id, runs)
        page_ids = [page_id for run in runs for page_id in run.extent.page_ids]
        exporting = asyncio.ensure_future(self._driver_call(Urgency.EXPORT, self._export_all, page_ids))
        with ExitStack() as undo:
            # Whatever becomes of the caller, the driver makes the descriptors, and somebody has to close them.
            undo.callback(exporting.add_done_callback, _close_result)
            fds = await asyncio.shield(exporting)
            # The session may have returned the pages meanwhile; then they may be another's by now.
            self._check_held(session_id, runs)
            undo.pop_all()
        return fds

    async def memory(self) -> DeviceMemory:
        """Raises DriverError."""
        return await self._driver_call(Urgency.EXPORT, self._driver.memory)

    def fence(self, session_id: str) -> None:
        """The session gets no new pages: what it waits for is refused."""
        error = SessionFenced("the session's stream broke while it waited; re-attach")
        self._answer_all(lambda wish: wish.session_id == session_id, error)

    @property
    def waiting_pages(self) -> int:
        return sum(entry.wish.page_count for entry in self.policy)

    @property
    def shortage(self) -> VattError | None:
        """Why the device gives no memory now."""
        return self._workshop.shortage

    def broken(self, error: BaseException) -> None:
        """A lost device, or a bug of ours: nothing may be lent any more."""
        log.critical("vattd stops lending: %s", error, exc_info=error)
        self.stop_lending(error if isinstance(error, DeviceLost) else VattError(f"vattd is broken: {error}"))
        self._on_broken(error)

    def stop_lending(self, refusal: VattError) -> None:
        """Refuse every lease from now on with this error, those that wait too. The first such error stays."""
        self._refusal = self._refusal or refusal
        self._answer_all(lambda _: True, refusal)
        self._changed.set()

    # The one task

    async def run(self) -> None:
        """Serve and work until cancelled."""
        now = self._now
        try:
            while True:
                self._changed.clear()
                now_s = now()
                self._serve(now_s)
                await self._forget_tenants()
                work = self._next_slice(now_s) if self._refusal is None else None
                self._press(now_s)
                if work is None:
                    self._upkeep.rested()
                    await self._wait_for_change(now_s)
                else:
                    await self._workshop.do(work, now)
        except Exception as error:  # noqa: BLE001 - the task's boundary: nothing may be lent on a ledger that is not true
            self.broken(error)

    def _serve(self, now_s: float) -> None:
        """Award what policy allows, refuse those whose time is over, and grant what is ready."""
        for entry, error in self.policy.award(now_s):
            self._answer(entry, self._shortage_or(error))
        for entry in self.policy.awarded:
            if self.ledger.shelf(entry.wish.session_id).ready_pages >= entry.awarded_pages:
                self._grant(entry, entry.awarded_pages)

    def _next_slice(self, now_s: float) -> Slice | None:
        """What to do next: for the leases that were awarded pages, then for the pool."""
        for entry in self.policy.awarded:
            shelf, wish = self.ledger.shelf(entry.wish.session_id), entry.wish
            work = self._workshop.slice_for(shelf, entry.awarded_pages - shelf.ready_pages, now_s)
            if work is not None:
                return work
            # They cannot be made now.
            if wish.may_wait(now_s):
                self.policy.postpone(entry)
            elif shelf.ready_pages >= wish.min_page_count:
                self._grant(entry, shelf.ready_pages)
            else:
                self._answer(entry, self._shortage_or(PoolExhausted(wish.min_page_count, shelf.ready_pages)))
        wanted = next((self.ledger.shelf(entry.wish.session_id) for entry in self.policy), None)
        return self._upkeep.next_slice(wanted, now_s)

    def _press(self, now_s: float) -> None:
        """Have sessions asked for what is missing, and end who does not answer where the operator chose so."""
        review = self.pressure.review(now_s)
        if not self.pressure.reclaims.is_waiting(Reason.OPERATOR, now_s):
            self._calm.set()
        for request in review.requests:
            self.engines.ask_back(request)
        for ask in review.ignored:
            log.warning("session %s did not give back %d pages in time", ask.session_id, ask.page_count)
        if review.victim is not None:
            self.engines.kill(review.victim.session_id, f"{review.victim.page_count} promised pages are overdue")

    async def _forget_tenants(self) -> None:
        """Tenants without a session and without a page leave nothing behind, not even a slab."""
        for zone in self.ledger.forget_empty_tenants():
            await self._thread.run(Urgency.BACKGROUND, self._driver.drop_zone, zone)

    async def _wait_for_change(self, now_s: float) -> None:
        """Until a session does something, a wish's time is over, or memory may be asked for again.

        `now_s` is when the last decision was taken: what was in the future then must end the wait.
        """
        retry_s = self._workshop.retry_s if self._workshop.shortage is not None else None
        times_s = [self.policy.next_change_s(now_s), self.pressure.next_change_s(now_s), retry_s]
        times_s.append(self._upkeep.next_change_s())
        waits_s = [time_s - now_s for time_s in times_s if time_s is not None and time_s > now_s]
        with suppress(asyncio.TimeoutError):  # before Python 3.11 not the built-in one
            await asyncio.wait_for(self._changed.wait(), min(waits_s, default=None))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _tend(self, tenant: Tenant) -> None:
        self._upkeep.tend(tenant)
        self._changed.set()

    def _reconsider(self, name: str) -> None:
        """A guarantee is another now: what waits may have become possible, or impossible."""
        for entry, error in self.policy.recheck():
            self._answer(entry, error)
        tenant = self.ledger.tenant(name)
        if tenant is not None:
            self._tend(tenant)

    # Answers

    def _grant(self, entry: Waiting, page_count: int) -> None:
        wish = entry.wish
        try:
            runs = self.ledger.lease(wish.session_id, wish.request_id, page_count, wish.min_page_count)
        except VattError as error:
            self._answer(entry, error)
            return
        waited_s = self._now() - entry.since_s
        if waited_s > 0:
            self.ledger.note_wait(wish.session_id, waited_s)
        self._answer(entry, runs)

    def _answer(self, entry: Waiting, answer: tuple[PageRun, ...] | VattError) -> None:
        self.policy.remove(entry)
        future = self._answers.pop(entry.wish.key).future
        if isinstance(answer, VattError):
            self._changed.set()  # those behind it may have their turn
            future.set_exception(answer)
            future.exception()  # whoever asked may have stopped listening: that is no error of ours
        else:
            future.set_result(answer)

    def _answer_all(self, chosen: Callable[[Wish], bool], error: VattError) -> None:
        for entry in self.policy:
            if chosen(entry.wish):
                self._answer(entry, error)

    def _shortage_or(self, error: VattError) -> VattError:
        """Where pages are short because the device is, that is what to say."""
        is_device = isinstance(error, PoolExhausted) and self._stock.unbacked_pages
        return (self._workshop.shortage or error) if is_device else error

    async def _driver_call(self, urgency: Urgency, call: Callable[..., T], *args: object) -> T:
        """A driver call on somebody's behalf; a lost device is everybody's concern."""
        try:
            return await self._thread.run(urgency, call, *args)
        except DeviceLost as error:
            self.broken(error)
            raise

    def _check_held(self, session_id: str, runs: Iterable[PageRun]) -> None:
        for run in runs:
            if not self.ledger.holds(session_id, run):
                raise PageNotHeld(f"this session does not lease {run.extent} under generation {run.generation}")

    def _export_all(self, page_ids: list[int]) -> list[int]:
        with ExitStack() as undo:
            fds = []
            for page_id in page_ids:
                fds.append(self._driver.export(page_id))
                undo.callback(os.close, fds[-1])
            undo.pop_all()
            return fds


def _close_result(exporting: asyncio.Future[list[int]]) -> None:
    if not exporting.cancelled() and exporting.exception() is None:
        for fd in exporting.result():
            os.close(fd)
