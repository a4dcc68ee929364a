"""Pages that are leased and imported but not mapped yet, so that a growth step needs no round trip."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from vatt.errors import Closed, DriverError, InvalidRequest, VattError
from vatt.pages import Extent, FreeExtents, page_count_of
from vatt.usage import Usage
from vattention import fork_guard
from vattention.demand import IDLE, Demand, Watermarks
from vattention.page_source import LeasePurpose, PageSource
from vattention.returns import give_back_or_keep

log = logging.getLogger(__name__)

# How often the background looks again while the engine is active, and the most often that it reports.
TICK_S = 0.25
# Between two rounds of work, so that many small takes and puts make one message.
PAUSE_S = 0.005
# Pages of one refill: a take that comes meanwhile waits for these.
REFILL_PAGES = 64
# After a refused refill the background leaves vattd alone for so long; a take asks at once all the same.
REFILL_BACKOFF_S = 1.0
# After vattd asked for pages, none is kept here for so long: else they would be leased again as soon as they are free.
RECLAIM_REST_S = 2.0


class PageUser(Protocol):
    """A KV cache, as its session's page cache sees it."""

    def usage(self) -> Usage: ...

    def idle_pages(self, *, finished_only: bool = True) -> int:
        """How many pages `gather_idle` could gather in the end."""

    def gather_idle(self, page_count: int, *, finished_only: bool = True) -> list[Extent]:
        """Unmap about so many idle pages, the caller's from now on: those of finished slots, or what running slots have
        over their need as well. Only what the device is done with; waits for nobody, since the asker may hold a lock.
        """


def deal(free: FreeExtents, runs: Sequence[int], after: Sequence[int | None] | None = None) -> list[list[Extent]]:
    """Take a list of extents for each run length, each as few as possible; `free` has enough.

    `after` names a page for each run that it should go on from if it can.
    """
    dealt: list[list[Extent]] = [[] for _ in runs]
    # Longest first: a short run would else break up the only extent that a long one fits in.
    for at in sorted(range(len(runs)), key=lambda at: -runs[at]):
        dealt[at] = _deal_run(free, runs[at], after[at] if after is not None else None)
    return dealt


def _deal_run(free: FreeExtents, page_count: int, after: int | None) -> list[Extent]:
    head = free.take_at(after + 1, page_count) if after is not None else None
    if head is not None:
        rest = page_count - head.page_count
        return [head, *free.take(rest)] if rest else [head]
    run = free.take_run(page_count)
    return [run] if run is not None else free.take(page_count)


class PageCache:
    """The session's unmapped pages, dealt by runs.

    Invariant: a page is in `_free`, or somebody took it and has not put it back, or it belongs to the source; never
    two. A thread keeps `_free` between the watermarks and reports the usage. It waits on a condition, without any
    timeout while there is nothing to keep and nothing in use. What goes wrong there is not raised there: the next
    `take` asks vattd itself and is told. Thread-safe.
    """

    def __init__(
        self,
        source: PageSource,
        usage: Callable[[], Usage],
        clock: Callable[[], float] = time.monotonic,
        spare_pages: Callable[[], int] = lambda: 0,
    ) -> None:
        """`spare_pages` says how many an engine that has taken as many lately may keep, beside what its slots take in a
        step. `usage` says how many pages are mapped, by whomever; what they are used for comes from those who join."""
        self._source = source
        self._mapped_usage = usage
        self._clock = clock
        self._birth = fork_guard.Birth()
        self._free = FreeExtents()
        self._demand = Demand()
        self._spare_pages = spare_pages
        self._users: weakref.WeakSet[PageUser] = weakref.WeakSet()
        self._growth_steps: dict[int, int] = {}
        self._reported: Usage | None = Usage()  # None: vattd is to be told again, whatever it was told
        self._tellings = 0  # how often it was to be told again
        self._report_after_s = self._rest_until_s = self._keep_after_s = float("-inf")
        self._closed = False
        self._changed = threading.Condition()
        # Held while asking for pages, so that a take waits for a refill under way instead of asking beside it.
        self._leasing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="vattention-pages", daemon=True)
        self._thread.start()

    @property
    def page_count(self) -> int:
        """Pages that lie here now."""
        return self._free.page_count

    def set_growth_step(self, owner: object, page_count: int) -> None:
        """Say what one growth step of all of `owner`'s slots can take; 0 forgets the owner."""
        self._birth.check()
        with self._changed:
            self._growth_steps.pop(id(owner), None)
            if page_count:
                self._growth_steps[id(owner)] = page_count
            self._demand.step_pages = sum(self._growth_steps.values())
            self._changed.notify_all()

    def join(self, user: PageUser) -> None:
        """Count what `user` holds into the usage, and ask it for idle pages when another one is short."""
        self._birth.check()
        with self._changed:
            self._users.add(user)
            self._changed.notify_all()

    def leave(self, user: PageUser) -> None:
        """Forget a user, which holds nothing any more."""
        self._birth.check()
        with self._changed:
            self._users.discard(user)
            self._growth_steps.pop(id(user), None)
            self._demand.step_pages = sum(self._growth_steps.values())
            self._changed.notify_all()

    def reclaim(self, page_count: int, asker: PageUser) -> bool:
        """Have the users other than `asker` put back idle pages, about so many in all. Did any come?"""
        before = page_count
        for user in self.users():
            if page_count > 0 and user is not asker:
                extents = user.gather_idle(page_count)
                self.put(extents)
                page_count -= page_count_of(extents)
        return page_count < before

    def users(self) -> list[PageUser]:
        """Those who have joined."""
        with self._changed:
            return list(self._users)

    def give_up(self, page_count: int) -> list[Extent]:
        """Up to so many of the pages here, for the caller to give back: vattd wants them. For a while none is fetched
        or kept in their place; a `take` asks for what it lacks as ever."""
        self._birth.check()
        with self._changed:
            self._demand.forget()
            self._keep_after_s = self._clock() + RECLAIM_REST_S
            self._changed.notify_all()
            return self._free.take(page_count)

    def take(
        self,
        runs: Sequence[int],
        after: Sequence[int | None] | None = None,
        purpose: LeasePurpose = LeasePurpose.GROW,
    ) -> list[list[Extent]]:
        """A list of extents for each run length asked, as `deal` deals them: all of them, or an error.

        What is missing is leased at once: GROW or AHEAD. Raises PoolExhausted or LimitExceeded with the pages that were
        missing.
        """
        self._birth.check()
        if any(run < 1 for run in runs):
            raise InvalidRequest(f"a run has at least one page: {list(runs)}")
        wanted = sum(runs)
        with self._changed:
            self._check_open()
            if self._free.page_count >= wanted:
                return self._deal(runs, after, wanted)
        with self._leasing:
            while True:
                with self._changed:
                    self._check_open()
                    missing = wanted - self._free.page_count
                    if missing <= 0:
                        return self._deal(runs, after, wanted)
                self._keep(self._source.lease(missing, purpose=purpose))

    def put(self, extents: Sequence[Extent]) -> None:
        """Bring back pages that are mapped nowhere any more, or add pages that were leased elsewhere.

        After close() they go straight back; those that the driver does not let go of lie here.
        """
        self._birth.check()
        self._keep(extents)

    def close(self) -> None:
        """Stop the background and give every page here back. Idempotent; in a forked child it does nothing.

        Raises DriverError if some cannot be given back: they lie here, and another close() tries again.
        """
        if not self._birth.is_here:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        with self._changed:
            pages = self._free.take(self._free.page_count)
        if pages:
            self._give_back(pages)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the session is closed")

    def _deal(self, runs: Sequence[int], after: Sequence[int | None] | None, wanted: int) -> list[list[Extent]]:
        dealt = deal(self._free, runs, after)
        self._demand.note(wanted, self._clock())
        self._changed.notify_all()
        return dealt

    def _keep(self, extents: Sequence[Extent]) -> None:
        """Lay pages in; after close() they go straight back, as far as the driver lets go of them."""
        with self._changed:
            if not self._closed:
                self._lay_in(extents)
                return
        try:
            self._give_back(extents)
        except DriverError as error:  # who brings them has done its part
            log.warning("page cache: pages that came after close() stay here: %s", error)

    def _lay_in(self, extents: Sequence[Extent]) -> None:
        with self._changed:
            for extent in extents:
                self._free.give_back(extent)
            self._changed.notify_all()

    def _give_back(self, extents: Sequence[Extent]) -> None:
        give_back_or_keep(self._source.give_back, extents, self._lay_in)

    def _run(self) -> None:
        """The background thread."""
        while True:
            try:
                # Read before the lock is taken: a KV cache holds its own lock while it takes pages here.
                usage = self._usage()
                with self._changed:
                    if self._closed:
                        return
                    if not self._work_waits(usage):
                        self._changed.wait(None if self._is_idle(usage) else TICK_S)
                        continue
                self._tend()
            except VattError as error:
                log.debug("page cache: %s", error)
                self._rest_until_s = self._clock() + REFILL_BACKOFF_S
            except Exception:  # the thread's boundary: a bug here must not take the engine with it
                log.exception("page cache: unexpected")
                self._rest_until_s = self._clock() + REFILL_BACKOFF_S
            with self._changed:
                self._changed.wait_for(lambda: self._closed, PAUSE_S)

    def report_again(self) -> None:
        """Another vattd may be there now, which knows nothing of what the pages are used for."""
        with self._changed:
            self._tellings += 1
            self._reported = None
            self._changed.notify_all()

    def _usage(self) -> Usage:
        """Called with no lock held: users take their own, and hold them while they take pages here."""
        joined = sum((user.usage() for user in self.users()), Usage())
        return dataclasses.replace(joined, mapped_pages=0) + self._mapped_usage()

    def _is_idle(self, usage: Usage) -> bool:
        """Can only a caller change anything now? Not while something is in use: tokens come and go without a word."""
        marks = self._watermarks(self._clock())
        return marks == IDLE and self._free.page_count == 0 and usage == self._reported == Usage()

    def _work_waits(self, usage: Usage) -> bool:
        now_s = self._clock()
        if now_s < self._rest_until_s:
            return False
        marks = self._watermarks(now_s)
        return not marks.low_pages <= self._free.page_count <= marks.keep_pages or self._report_is_due(usage, now_s)

    def _watermarks(self, now_s: float) -> Watermarks:
        if now_s < self._keep_after_s:
            return IDLE
        self._demand.spare_pages = self._spare_pages()
        return self._demand.watermarks(now_s)

    def _report_is_due(self, usage: Usage, now_s: float) -> bool:
        return now_s >= self._report_after_s and self._reported != usage

    def _tend(self) -> None:
        """Refill to the high watermark, or give back what is past keeping, and report the usage."""
        with self._leasing:
            with self._changed:
                marks = self._watermarks(self._clock())
                is_short = self._free.page_count < marks.low_pages
                short = min(marks.high_pages - self._free.page_count, REFILL_PAGES) if is_short else 0
                excess = self._free.page_count - marks.keep_pages
                surplus = self._free.take(excess) if excess > 0 else []
            if surplus:
                self._give_back(surplus)
            if short > 0:
                self._keep(self._source.lease(short, min_page_count=1, purpose=LeasePurpose.AHEAD))
        usage, tellings = self._usage(), self._tellings
        if self._report_is_due(usage, self._clock()):
            self._source.report_usage(usage)
            with self._changed:
                if self._tellings == tellings:
                    self._reported = usage
            self._report_after_s = self._clock() + TICK_S
