"""The pool: lends what is ready, and has the workshop make what is not.

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
    InvalidRequest,
    LeaseCancelled,
    LimitExceeded,
    PageNotHeld,
    PoolExhausted,
    SessionFenced,
    SessionUnknown,
    VattError,
)
from vattd.driver_thread import DriverThread, Urgency
from vattd.ledger import Ledger, PageRun
from vattd.policy import LeaseQueue, Purpose, Wish
from vattd.workshop import Slice, Workshop
from vattention.vmm.driver import DeviceMemory, PhysicalDriver

log = logging.getLogger(__name__)

T = TypeVar("T")

# A wish costs a little at every turn; an engine has a handful under way.
MAX_WAITING_LEASES = 256


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bytes of memory the pool keeps backed, may back, and keeps ready for each tenant that has a session."""

    min_bytes: int
    max_bytes: int
    headroom_bytes: int

    def __post_init__(self) -> None:
        if not 0 <= self.min_bytes <= self.max_bytes or self.headroom_bytes < 0:
            raise ValueError(f"not a pool's limits: {self}")


@dataclass(slots=True)
class _Answer:
    """What a waiting wish will be told, and how many calls listen: a repeated request waits for the same answer."""

    wish: Wish
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
    ) -> None:
        self.ledger, self.limits = ledger, limits
        self._stock, self._driver, self._thread = ledger.stock, driver, thread
        self._on_broken = on_broken
        page = ledger.page_size_bytes
        self._min_pages = limits.min_bytes // page
        self._headroom_pages = limits.headroom_bytes // page
        self._workshop = Workshop(self._stock, driver, thread)
        self._queue = LeaseQueue()
        self._answers: dict[tuple[str, str], _Answer] = {}
        self._changed = asyncio.Event()
        self._refusal: VattError | None = None  # set when nothing is lent any more

    # What sessions ask for

    async def lease(self, wish: Wish) -> tuple[PageRun, ...]:
        """Pages for a session; waits for them as `wish` allows. Raises the errors of LeasePages in vatt.proto."""
        if self._refusal is not None:
            raise self._refusal
        if wish.min_page_count > self._stock.max_pages:
            raise LimitExceeded(wish.min_page_count, self._stock.max_pages)
        shelf = self.ledger.shelf(wish.session_id)
        repeats = self.ledger.remembers(wish.session_id, wish.request_id)
        if repeats or (shelf.ready_pages >= wish.page_count and not self._queue.must_wait(wish)):
            runs = self._grant(wish)
            self._changed.set()  # the headroom may need filling
            return runs
        if wish.key not in self._answers:
            if self._queue.waiting_of(wish.session_id) >= MAX_WAITING_LEASES:
                raise InvalidRequest(f"{MAX_WAITING_LEASES} leases of this session wait already")
            self._answers[wish.key] = _Answer(wish, asyncio.get_running_loop().create_future())
            self._queue.add(wish)
        answer = self._answers[wish.key]
        self._changed.set()
        answer.listeners += 1
        try:
            return await asyncio.shield(answer.future)
        finally:
            answer.listeners -= 1
            if not answer.listeners and not answer.future.done():  # its callers have gone away
                self._answer(answer.wish, LeaseCancelled("the caller stopped waiting"))

    def open_session(self, session_id: str, tenant: str, uid: int) -> None:
        """Raises TenantDenied, InvalidRequest."""
        self.ledger.open_session(session_id, tenant, uid)
        self._changed.set()  # its headroom

    def cancel(self, session_id: str, request_id: str) -> int:
        returned = self.ledger.cancel(session_id, request_id)
        self._answer_all(lambda wish: wish.key == (session_id, request_id), LeaseCancelled("cancelled"))
        self._changed.set()
        return returned

    def give_back(self, session_id: str, runs: Iterable[PageRun]) -> int:
        returned = self.ledger.give_back(session_id, runs)
        self._changed.set()
        return returned

    def end_session(self, session_id: str, *, unmapped: bool) -> int:
        held = self.ledger.end_session(session_id, unmapped=unmapped)
        self._answer_all(lambda wish: wish.session_id == session_id, SessionUnknown("the session has ended"))
        self._changed.set()
        return held

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
        return self._queue.waiting_pages

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
        now = asyncio.get_running_loop().time
        try:
            while True:
                self._changed.clear()
                self._serve()
                await self._forget_tenants()
                now_s = now()
                work = self._next_slice(now_s) if self._refusal is None else None
                if work is None:
                    await self._wait_for_change(now_s)
                else:
                    await self._workshop.do(work, now)
        except Exception as error:  # noqa: BLE001 - the task's boundary: nothing may be lent on a ledger that is not true
            self.broken(error)

    def _serve(self) -> None:
        """Grant every wish whose pages are ready and that nobody is ahead of."""
        for wish in self._queue:
            if self.ledger.shelf(wish.session_id).ready_pages >= wish.page_count:
                self._grant_waiting(wish)
            elif wish.purpose is Purpose.ADMIT:
                return

    def _next_slice(self, now_s: float) -> Slice | None:
        """What to do next: for the leases that wait, then for the pool. Refuses what nothing can be done for."""
        somebody_waits = False  # then those behind get nothing, but they need not wait longer than they said
        for wish in self._queue:
            shelf = self.ledger.shelf(wish.session_id)
            if not somebody_waits:
                work = self._workshop.slice_for(shelf, wish.page_count - shelf.ready_pages, now_s)
                if work is not None:
                    return work
            if wish.may_wait(now_s):
                somebody_waits = True
            elif shelf.ready_pages >= wish.min_page_count and not somebody_waits:
                self._grant_waiting(wish)
            else:
                short = self._workshop.shortage if self._stock.unbacked_pages else None
                self._answer(wish, short or PoolExhausted(wish.min_page_count, shelf.ready_pages))
        return self._background_slice(now_s)

    def _background_slice(self, now_s: float) -> Slice | None:
        """What the pool wants for itself: the dead's memory back, headroom, its minimum, and no more than is of use."""
        work = self._workshop.quarantine_slice()
        for shelf in self.ledger.attached_shelves():
            if work is None and shelf.ready_pages < self._headroom_pages:
                work = self._workshop.headroom_slice(shelf, self._headroom_pages - shelf.ready_pages, now_s)
        if work is not None:
            return work
        surplus = self._stock.backed_pages - self._min_pages
        if surplus < 0:
            return self._workshop.stock_up_slice(-surplus, now_s)
        return self._workshop.trim_slice(surplus, self.ledger.idle_shelves()) if surplus else None

    async def _forget_tenants(self) -> None:
        """Tenants without a session and without a page leave nothing behind, not even a slab."""
        for zone in self.ledger.forget_empty_tenants():
            await self._thread.run(Urgency.BACKGROUND, self._driver.drop_zone, zone)

    async def _wait_for_change(self, now_s: float) -> None:
        """Until a session does something, a wish's time is over, or memory may be asked for again.

        `now_s` is when the last decision was taken: what was in the future then must end the wait.
        """
        times_s = [self._queue.next_deadline_s(now_s), self._workshop.retry_s]
        waits_s = [time_s - now_s for time_s in times_s if time_s is not None and time_s > now_s]
        with suppress(asyncio.TimeoutError):  # before Python 3.11 not the built-in one
            await asyncio.wait_for(self._changed.wait(), min(waits_s, default=None))

    # Answers

    def _grant(self, wish: Wish) -> tuple[PageRun, ...]:
        return self.ledger.lease(wish.session_id, wish.request_id, wish.page_count, wish.min_page_count)

    def _grant_waiting(self, wish: Wish) -> None:
        try:
            runs = self._grant(wish)
        except VattError as error:
            self._answer(wish, error)
        else:
            self._answer(wish, runs)

    def _answer(self, wish: Wish, answer: tuple[PageRun, ...] | VattError) -> None:
        self._queue.remove(wish)
        future = self._answers.pop(wish.key).future
        if isinstance(answer, VattError):
            future.set_exception(answer)
            future.exception()  # whoever asked may have stopped listening: that is no error of ours
        else:
            future.set_result(answer)

    def _answer_all(self, chosen: Callable[[Wish], bool], error: VattError) -> None:
        for wish in self._queue:
            if chosen(wish):
                self._answer(wish, error)

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
