"""The pool: makes ledger and driver agree. It creates pages, scrubs them, destroys them, and lends what is ready.

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

from vatt.errors import DeviceLost, LeaseCancelled, LimitExceeded, PageNotHeld, PoolExhausted, SessionUnknown, VattError
from vatt.pages import Extent
from vattd.driver_thread import DriverThread, Urgency
from vattd.ledger import Ledger, PageRun
from vattd.policy import LeaseQueue, Purpose, Wish
from vattd.stock import Shelf
from vattention.vmm.driver import PhysicalDriver

log = logging.getLogger(__name__)

# A slice keeps the driver thread from the next request for about a millisecond (host: 1.2 ms for 2 MiB, CUDA: 0.2 ms a
# page). Where a lease waits for the pages themselves, longer ones make it shorter.
BACKGROUND_SLICE_BYTES = 2 << 20
URGENT_SLICE_BYTES = 32 << 20
# After the device refused memory, ask again this much later, unless pages come back before.
RETRY_CREATE_S = 0.25


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bytes of memory the pool keeps backed, may back, and keeps ready for each tenant that has a session."""

    min_bytes: int
    max_bytes: int
    headroom_bytes: int

    def __post_init__(self) -> None:
        if not 0 <= self.min_bytes <= self.max_bytes or self.headroom_bytes < 0:
            raise ValueError(f"not a pool's limits: {self}")


@dataclass(frozen=True, slots=True)
class _Slice:
    """Driver work on pages that the ledger already shows as being worked on."""

    call: Callable[[Extent], None]
    extents: list[Extent]
    finish: Callable[[Extent], None]
    fail: Callable[[Extent], None]
    urgency: Urgency


@dataclass(slots=True)
class _Answer:
    """What a waiting wish will be told, and how many calls listen: a repeated request waits for the same answer."""

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
        self._background_pages = max(1, BACKGROUND_SLICE_BYTES // page)
        self._urgent_pages = max(1, URGENT_SLICE_BYTES // page)
        self._queue = LeaseQueue()
        self._answers: dict[tuple[str, str], _Answer] = {}
        self._changed = asyncio.Event()
        self._refusal: VattError | None = None  # set when nothing is lent any more
        self._shortage: VattError | None = None  # why the device gave no memory the last time
        self._retry_create_s = 0.0

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
            self._answers[wish.key] = _Answer(asyncio.get_running_loop().create_future())
            self._queue.add(wish)
        answer = self._answers[wish.key]
        self._changed.set()
        answer.listeners += 1
        try:
            return await asyncio.shield(answer.future)
        finally:
            answer.listeners -= 1
            if not answer.listeners and not answer.future.done():  # its callers have gone away
                self._answer(wish, LeaseCancelled("the caller stopped waiting"))

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
        with ExitStack() as undo:
            fds = await self._thread.run(Urgency.REQUEST, self._export_all, page_ids)
            for fd in fds:
                undo.callback(os.close, fd)
            # The session may have returned them meanwhile; then they may be another's by now.
            self._check_held(session_id, runs)
            undo.pop_all()
            return fds

    @property
    def waiting_pages(self) -> int:
        return self._queue.waiting_pages

    def stop_lending(self, refusal: VattError) -> None:
        """Refuse every lease from now on with this error, those that wait too."""
        self._refusal = refusal
        self._answer_all(lambda _: True, refusal)
        self._changed.set()

    # The one task

    async def run(self) -> None:
        """Serve and work until cancelled."""
        try:
            while True:
                self._changed.clear()
                self._serve()
                work = self._next_slice() if self._refusal is None else None
                if work is None:
                    await self._wait_for_change()
                else:
                    await self._do(work)
        except Exception as error:  # the task's boundary: nothing may be lent on a ledger that is not true
            log.critical("the pool stops lending: %s", error, exc_info=error)
            self.stop_lending(error if isinstance(error, DeviceLost) else VattError(f"vattd is broken: {error}"))
            self._on_broken(error)

    def _serve(self) -> None:
        """Grant every wish whose pages are ready and that nobody is ahead of."""
        for wish in self._queue:
            if self.ledger.shelf(wish.session_id).ready_pages >= wish.page_count:
                self._grant_waiting(wish)
            elif wish.purpose is Purpose.ADMIT:
                return

    def _next_slice(self) -> _Slice | None:
        """What to do next: for the leases that wait, then for the pool. Refuses what nothing can be done for."""
        now_s = asyncio.get_running_loop().time()
        for wish in self._queue:
            shelf = self.ledger.shelf(wish.session_id)
            work = self._slice_for(shelf, wish.page_count - shelf.ready_pages, now_s)
            if work is not None:
                return work
            if wish.may_wait(now_s):
                break
            if shelf.ready_pages >= wish.min_page_count:
                self._grant_waiting(wish)
            else:
                short = self._shortage if self._stock.unbacked_pages else None
                self._answer(wish, short or PoolExhausted(wish.min_page_count, shelf.ready_pages))
        return self._background_slice(now_s)

    def _slice_for(self, shelf: Shelf, missing_pages: int, now_s: float) -> _Slice | None:
        """The quickest way to more ready pages on this shelf, or None if there is none."""
        page_count = min(missing_pages, self._urgent_pages)
        return (
            self._scrub(self._stock.begin_scrub(None, page_count), Urgency.REQUEST)
            or self._create(shelf, page_count, Urgency.REQUEST, now_s)
            or self._scrub(self._stock.begin_scrub(shelf, page_count), Urgency.REQUEST)
            or self._destroy(self._stock.begin_destroy_quarantined(page_count), Urgency.REQUEST, died=True)
            or self._destroy(self._stock.begin_destroy_for(shelf, page_count), Urgency.REQUEST)
        )

    def _background_slice(self, now_s: float) -> _Slice | None:
        """What the pool wants for itself: the dead's memory back, headroom, its minimum, and no more than is of use."""
        page_count, urgency = self._background_pages, Urgency.BACKGROUND
        work = self._destroy(self._stock.begin_destroy_quarantined(page_count), urgency, died=True)
        if work is not None:
            return work
        for shelf in self.ledger.attached_shelves():
            missing = min(self._headroom_pages - shelf.ready_pages, page_count)
            if missing > 0:
                work = self._scrub(self._stock.begin_scrub(None, missing), urgency)
                work = work or self._create(shelf, missing, urgency, now_s)
                if work is not None:
                    return work
        surplus = self._stock.backed_pages - self._min_pages
        if surplus < 0:
            return self._create(self._stock.shelf_to_stock_up(), min(-surplus, page_count), urgency, now_s)
        idle = self.ledger.idle_shelves()
        return self._destroy(self._stock.begin_destroy_idle(min(surplus, page_count), among=idle), urgency)

    def _create(self, shelf: Shelf | None, page_count: int, urgency: Urgency, now_s: float) -> _Slice | None:
        if now_s < self._retry_create_s:
            return None
        extents = self._stock.begin_create(shelf, page_count)

        def finish(extent: Extent) -> None:
            self._shortage = None
            self._stock.finish_create(extent, clean=self._driver.fresh_is_zero)

        return _Slice(self._driver.create, extents, finish, self._stock.fail_create, urgency) if extents else None

    def _scrub(self, extents: list[Extent], urgency: Urgency) -> _Slice | None:
        stock = self._stock
        return _Slice(self._driver.scrub, extents, stock.finish_scrub, stock.fail_scrub, urgency) if extents else None

    def _destroy(self, extents: list[Extent], urgency: Urgency, *, died: bool = False) -> _Slice | None:
        # Where a place in a slab outlives its page, a forked child of the dead may still map it: never use it again.
        retire = died and not self._driver.recycles_across_tenants

        def finish(extent: Extent) -> None:
            self._stock.finish_destroy(extent, retire=retire)
            self._retry_create_s = 0.0  # there is memory again

        return _Slice(self._driver.destroy, extents, finish, self._stock.fail_destroy, urgency) if extents else None

    async def _do(self, work: _Slice) -> None:
        """Make the slice's driver calls. A page whose call failed goes where its `fail` says; the pool goes on."""
        for extent in work.extents:
            try:
                await self._thread.run(work.urgency, work.call, extent)
            except DeviceLost:
                work.fail(extent)
                raise
            except VattError as error:
                work.fail(extent)
                log.warning("%s of %s failed: %s", work.call.__name__, extent, error)
                if work.call == self._driver.create:
                    self._shortage = error
                    self._retry_create_s = asyncio.get_running_loop().time() + RETRY_CREATE_S
            else:
                work.finish(extent)

    async def _wait_for_change(self) -> None:
        """Until a session does something, a wish's time is over, or memory may be asked for again."""
        now_s = asyncio.get_running_loop().time()
        times_s = [self._queue.next_deadline_s(now_s), self._retry_create_s]
        later_s = [time_s - now_s for time_s in times_s if time_s is not None and time_s > now_s]
        with suppress(asyncio.TimeoutError):  # before Python 3.11 not the built-in one
            await asyncio.wait_for(self._changed.wait(), min(later_s, default=None))

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
