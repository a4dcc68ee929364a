"""The pool: lends what policy allows and is ready, has the workshop make what is not, and asks sessions for pages back.

One task does all that takes time, a slice after the other; between two slices the ledger is true, and leases are
served. So nothing here needs a lock, and a request that finds pages ready never waits for the driver.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TypeVar

from vatt.errors import DeviceLost, VattError
from vatt.pages import page_count_of
from vatt.usage import Usage
from vattd.driver_thread import DriverThread, Urgency
from vattd.engines import Engines, NoEngines
from vattd.exports import Exports
from vattd.guarantee import Access, Guarantee
from vattd.happenings import Happenings, Kind
from vattd.ledger import Ledger
from vattd.lending import Answer, Lending
from vattd.page_notes import NoNotes, PageNotes
from vattd.page_run import PageRun
from vattd.policy import Policy
from vattd.pool_record import PoolRecord
from vattd.pressure import Pressure
from vattd.reclaim import Ask, Reason, Reclaims
from vattd.rules import PoolLimits, PoolRules
from vattd.upkeep import Upkeep
from vattd.wish import Waiting, Wish
from vattd.workshop import Workshop
from vattention.vmm.driver import DeviceMemory, PhysicalDriver

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class _Listeners:
    """Calls that wait for one wish's answer: a repeated request waits for the same."""

    entry: Waiting
    answer: asyncio.Future[tuple[PageRun, ...]]
    count: int = 0


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
        notes: PageNotes | None = None,
        happenings: Happenings | None = None,
    ) -> None:
        self._notes = notes or NoNotes()
        self.happenings = happenings or Happenings(time.time)
        rules = rules or PoolRules()
        self.ledger, self.limits = ledger, limits
        self.engines: Engines = NoEngines()
        self._stock, self._driver, self._thread = ledger.stock, driver, thread
        self._on_broken = on_broken
        self._workshop = Workshop(self._stock, driver, thread, notes)
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
        self.record = PoolRecord(ledger, reclaims.counts, self.happenings)
        self._lending = Lending(ledger, self.policy, self.pressure, self._workshop, self._upkeep, self._answer, notes)
        self.exports = Exports(ledger, driver, self._driver_call)
        self._listeners: dict[tuple[str, str], _Listeners] = {}
        self._changed = asyncio.Event()
        self._calm = asyncio.Event()  # nobody is expected to give back what an operator asked for
        self._refusal: VattError | None = None  # set when nothing is lent any more
        self._is_broken = False
        self.device_lost = False  # nothing on it can be used any more: vattd is about to end

    # What sessions ask for

    async def lease(self, wish: Wish) -> tuple[PageRun, ...]:
        """Pages for a session; waits for them as `wish` allows. Raises the errors of LeasePages in vatt.proto."""
        if self._refusal is not None:
            raise self._refusal
        self._changed.set()  # whatever becomes of it: pages may have to be made, or asked back
        if self.ledger.remembers(wish.session_id, wish.request_id):
            return self.ledger.lease(wish.session_id, wish.request_id, wish.page_count, wish.min_page_count)
        listeners = self._listeners.get(wish.key) or self._take_in(wish)
        listeners.count += 1
        try:
            return await asyncio.shield(listeners.answer)
        finally:
            listeners.count -= 1
            if not listeners.count and not listeners.answer.done():  # its callers have gone away
                self._lending.drop(listeners.entry)

    def _take_in(self, wish: Wish) -> _Listeners:
        now_s = self._now()
        entry = self._lending.take_in(wish, now_s)
        listeners = _Listeners(entry, asyncio.get_running_loop().create_future())
        self._listeners[wish.key] = listeners
        self._lending.serve(now_s)
        return listeners

    def _answer(self, entry: Waiting, answer: Answer) -> None:
        """What became of a wish."""
        future = self._listeners.pop(entry.wish.key).answer
        if isinstance(answer, VattError):
            self._changed.set()  # those behind it may have their turn
            future.set_exception(answer)
            future.exception()  # whoever asked may have stopped listening: that is no error of ours
        else:
            future.set_result(answer)
            page_count = page_count_of(run.extent for run in answer)
            self.record.granted(entry, page_count, self._now() - entry.since_s)

    def open_session(self, session_id: str, tenant: str, uid: int, gids: Iterable[int] = ()) -> None:
        """Raises TenantDenied, InvalidRequest, Draining."""
        self._lending.open_session(session_id, tenant, uid, gids)
        self._changed.set()

    def cancel(self, session_id: str, request_id: str) -> int:
        self._changed.set()
        with self.record.answers_of(session_id):
            return self._lending.cancel(session_id, request_id)

    def give_back(self, session_id: str, runs: Iterable[PageRun]) -> int:
        self._changed.set()
        with self.record.answers_of(session_id):
            return self._lending.give_back(session_id, runs)

    def report_usage(self, session_id: str, usage: Usage) -> None:
        """Raises InvalidRequest. What is idle now may be asked for by who waits."""
        self.ledger.report_usage(session_id, usage)
        if self.policy.wishes.has_queue:
            self._changed.set()

    def look_again(self) -> None:
        """Something has changed that was not done here."""
        self._changed.set()

    def answer_reclaim(self, session_id: str, reclaim_id: int) -> None:
        """The session gave back what it could."""
        with self.record.answers_of(session_id):
            self.pressure.reclaims.answered(session_id, reclaim_id, self._now())
        self._changed.set()

    def ask_again(self, session_id: str) -> None:
        """The session can be told again what is wanted of it."""
        self.pressure.reclaims.tell_again(session_id)
        self._changed.set()

    def fence(self, session_id: str) -> None:
        """The session gets no new pages: what it waits for is refused."""
        self._lending.fence(session_id)

    def end_session(self, session_id: str, *, unmapped: bool) -> int:
        self._changed.set()
        return self._lending.end_session(session_id, unmapped=unmapped)

    # What operators ask for

    def configure(self, name: str, guarantee: Guarantee, access: Access) -> None:
        """Set a tenant's guarantee and who may use it; all mins fit the pool. Raises InvalidRequest."""
        self._lending.configure(name, guarantee, access)
        words = guarantee.words(self.ledger.page_size_bytes)
        self.happenings.note(Kind.GUARANTEE_CHANGED, tenant=name, page_count=guarantee.min_pages, message=words)
        self._changed.set()

    def unconfigure(self, name: str) -> None:
        self._lending.unconfigure(name)
        self.happenings.note(Kind.GUARANTEE_CHANGED, tenant=name, message="nothing is promised to it any more")
        self._changed.set()

    @property
    def draining(self) -> bool:
        return self._lending.is_draining

    def drain(self) -> None:
        """Begin nothing new: refuse ADMITs, those that wait too, and new sessions; ask for what is idle."""
        if not self.draining:
            self.happenings.note(Kind.DRAIN_BEGAN)
        self._lending.drain()
        self._changed.set()

    def resume(self) -> None:
        if self.draining:
            self.happenings.note(Kind.DRAIN_ENDED)
        self._lending.resume()
        self._changed.set()

    def evict(self, session_id: str) -> None:
        """Ask the session for all its pages, and answer what it waits for."""
        self._lending.evict(session_id)
        self._changed.set()

    async def shrink(self) -> int:
        """Give all idle memory back to the device, but for the pool's minimum and hard mins. Returns the page count.

        Raises DeviceLost: then some of it may be back."""
        self._check_sound()
        before = self._stock.destroyed_total
        shrunk = asyncio.Event()
        self._upkeep.shrink(shrunk.set)
        self._changed.set()
        await shrunk.wait()
        self._check_sound()
        return self._stock.destroyed_total - before

    async def ask_idle_back(self, wait_s: float) -> None:
        """Ask every session for what it does not use, and wait until all have answered, or for so long."""
        self.pressure.ask_all(self._now())
        self._calm.clear()
        self._changed.set()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._calm.wait(), wait_s)

    async def memory(self) -> DeviceMemory:
        """Raises DriverError."""
        return await self._driver_call(Urgency.EXPORT, self._driver.memory)

    @property
    def waiting_pages(self) -> int:
        return self.policy.wishes.all_pages

    @property
    def kept_free_pages(self) -> int:
        """What hard mins keep from everybody else, as far as it is free: others may still have to return some."""
        return min(self._stock.kept_pages, max(0, self._stock.capacity_pages - self._stock.lent_pages))

    @property
    def context_bytes(self) -> int | None:
        """What scrubbing took of the device for a context; None if there is one and nobody can tell."""
        return self._driver.context_bytes

    @property
    def shortage(self) -> VattError | None:
        """Why the device gives no memory now."""
        return self._workshop.shortage

    def broken(self, error: BaseException) -> None:
        """A lost device, which every call may meet, or a bug of ours: nothing may be lent any more."""
        if self._is_broken:
            return
        self._is_broken, self.device_lost = True, isinstance(error, DeviceLost)
        log.critical("vattd stops lending: %s", error, exc_info=error)
        self.stop_lending(error if isinstance(error, DeviceLost) else VattError(f"vattd is broken: {error}"))
        self._upkeep.rested()  # a shrinking will get no further
        self._on_broken(error)

    def _check_sound(self) -> None:
        if self._is_broken and self._refusal is not None:
            raise self._refusal

    def stop_lending(self, refusal: VattError) -> None:
        """Refuse every lease from now on with this error, those that wait too. The first such error stays."""
        self._refusal = self._refusal or refusal
        self._lending.refuse_all(refusal)
        self._changed.set()

    # The one task

    async def run(self) -> None:
        """Serve and work until cancelled."""
        now, lending = self._now, self._lending
        try:
            while True:
                await self._forget_tenants()
                # From here to the work there is no await: what is decided is decided of one moment.
                self._changed.clear()
                now_s = now()
                lending.serve(now_s)
                work = lending.next_slice(now_s) if self._refusal is None else None
                self._press(now_s)
                if work is None:
                    self._upkeep.rested()
                    await self._wait_for_change(now_s)
                else:
                    await self._workshop.do(work, now)
        except Exception as error:  # noqa: BLE001 - the task's boundary: nothing may be lent on a ledger that is not true
            self.broken(error)

    def _press(self, now_s: float) -> None:
        """Have sessions asked for what is missing, and end who does not answer where the operator chose so."""
        review = self._lending.review(now_s)
        if not self.pressure.reclaims.is_waiting(Reason.OPERATOR, now_s):
            self._calm.set()
        for request in review.requests:
            self.engines.ask_back(request)
            self.record.asked(request)
        for ask in review.ignored:
            log.warning("session %s did not give back %d pages in time", ask.session_id, ask.page_count)
            self.record.ignored(ask)
        if review.victim is not None:
            self._kill(review.victim, now_s)

    def _kill(self, overdue: Ask, now_s: float) -> None:
        try:
            self.engines.kill(overdue.session_id, f"{overdue.page_count} promised pages are overdue")
        except VattError as error:  # another one may be killed instead
            log.error("session %s goes on: %s", overdue.session_id, error)
            self.pressure.note_unkillable(overdue.session_id)
            self._changed.set()
        else:
            self.pressure.note_killed(overdue.session_id, now_s)

    async def _forget_tenants(self) -> None:
        """Tenants without a session and without a page leave nothing behind, not even a slab."""
        for zone in self.ledger.forget_empty_tenants():
            await self._thread.run(Urgency.BACKGROUND, self._driver.drop_zone, zone)
            self._notes.dropped(zone)

    async def _wait_for_change(self, now_s: float) -> None:
        """`now_s` is when the last decision was taken: what was in the future then must end the wait."""
        change_s = self._lending.next_change_s(now_s)
        # Not asyncio.wait_for: before Python 3.12 it may swallow a cancellation, and then nobody could end this task.
        with ExitStack() as undo:
            if change_s is not None:
                undo.callback(asyncio.get_running_loop().call_at(change_s, self._changed.set).cancel)
            await self._changed.wait()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _driver_call(self, urgency: Urgency, call: Callable[..., T], *args: object) -> T:
        """A driver call on somebody's behalf; a lost device is everybody's concern."""
        try:
            return await self._thread.run(urgency, call, *args)
        except DeviceLost as error:
            self.broken(error)
            raise
